package verify_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/verify"
	"probity/tests/need"
)

const vector = "0000000000000007-00112233445566ff"

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func vectorBytes(t testing.TB) []byte {
	t.Helper()
	return read(t, "../testdata/"+vector+".ndjson")
}

func signer(t testing.TB) *sign.Signer {
	t.Helper()
	s, err := sign.ParsePrivate(read(t, "../testdata/test.key"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// vectorLines decodes the vector's lines anew, to be changed by the caller.
func vectorLines(t testing.TB) (evidence.Header, []evidence.Line) {
	t.Helper()
	text := strings.Split(strings.TrimSuffix(string(vectorBytes(t)), "\n"), "\n")
	h, err := evidence.DecodeHeader(text[0])
	if err != nil {
		t.Fatal(err)
	}
	var lines []evidence.Line
	for _, x := range text[1 : len(text)-1] {
		l, err := evidence.Decode(x)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	return h, lines
}

// chunk signs lines under a header with another sequence number. edit, if not
// nil, changes the body after the tally was made and before it is signed.
func chunk(t testing.TB, s *sign.Signer, seq uint64, lines []evidence.Line, edit func(string) string) (name string, data []byte) {
	t.Helper()
	h, _ := vectorLines(t)
	return sealed(t, h, s, seq, lines, edit)
}

// chunk2 does the same for version 2.
func chunk2(t testing.TB, seq uint64, lines []evidence.Line) (name string, data []byte) {
	t.Helper()
	h, _ := vectorLines(t)
	h.Format = evidence.Format2
	return sealed(t, h, signer(t), seq, lines, nil)
}

// chunk3 does the same for version 3.
func chunk3(t testing.TB, seq uint64, lines []evidence.Line) (name string, data []byte) {
	t.Helper()
	h, _ := vectorLines(t)
	h.Format = evidence.Format3
	return sealed(t, h, signer(t), seq, lines, nil)
}

func sealed(t testing.TB, h evidence.Header, s *sign.Signer, seq uint64, lines []evidence.Line, edit func(string) string) (name string, data []byte) {
	t.Helper()
	h.Seq, h.Chunk, h.KeyID = evidence.Uint64(seq), evidence.ChunkName(seq, "00112233445566ff"), s.KeyID()
	line, err := evidence.EncodeHeader(h)
	if err != nil {
		t.Fatal(err)
	}
	body := append(line, '\n')
	var tally evidence.Tally
	for _, l := range lines {
		b, err := evidence.Encode(l)
		if err != nil {
			t.Fatal(err)
		}
		body = append(append(body, b...), '\n')
		tally.Add(l)
	}
	if edit != nil {
		body = []byte(edit(string(body)))
	}
	sum := sha256.Sum256(body)
	payload, err := evidence.EncodeStatement(tally.Statement(h, hex.EncodeToString(sum[:])))
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := s.Envelope(payload)
	if err != nil {
		t.Fatal(err)
	}
	return h.Chunk, append(append(body, envelope...), '\n')
}

// put writes a chunk into a spool under the path of the given name.
func put(t testing.TB, spool, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(spool, "ready", evidence.ChunkPath(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func check(t testing.TB, key *sign.PublicKey, paths ...string) (verify.Report, error) {
	t.Helper()
	return verify.Path(t.Context(), paths, key, verify.Options{})
}

func TestSecondVectorIsSound(t *testing.T) {
	rep, err := check(t, signer(t).Public(), "../testdata/0000000000000008-00112233445566ff.ndjson")
	if err != nil || !rep.Sound() || rep.Lines != 16 || len(rep.Rows) != 13 || len(rep.Gaps) != 2 {
		t.Fatalf("%v, %v: %d lines, %d rows, %d gaps", rep.Findings, err, rep.Lines, len(rep.Rows), len(rep.Gaps))
	}
}

func TestVectorIsSound(t *testing.T) {
	rep, err := check(t, signer(t).Public(), "../testdata/"+vector+".ndjson")
	if err != nil || !rep.Sound() || verify.ExitCode(rep, err) != 0 {
		t.Fatalf("%v, %v", rep.Findings, err)
	}
	if rep.Chunks != 1 || rep.Files != 1 || rep.Lines != 9 || rep.Runs != 2 || len(rep.Rows) != 5 || len(rep.Gaps) != 2 || rep.Log != "not checked" {
		t.Fatalf("%+v", rep)
	}
}

// Each byte of a chunk, the envelope included, changed to three others: verify
// names the file each time, and the exit code is 1. The three are three files, so
// that they are checked at once.
func TestEveryByte(t *testing.T) {
	data := vectorBytes(t)
	key := signer(t).Public()
	flips := []byte{0x01, 0x20, 0x80}
	dir := t.TempDir()
	var paths []string
	var files []*os.File
	for i := range flips {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		paths, files = append(paths, path), append(files, f)
	}
	if rep, err := check(t, key, paths[0]); verify.ExitCode(rep, err) != 0 {
		t.Fatal(rep.Findings, err)
	}
	for at := range data {
		for i, f := range files {
			if _, err := f.WriteAt([]byte{data[at] ^ flips[i]}, int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		rep, err := check(t, key, paths...)
		if verify.ExitCode(rep, err) != 1 || len(rep.Rows) != 0 || rep.Chunks != 0 {
			t.Fatalf("byte %d: exit %d, %v, %d chunks taken", at, verify.ExitCode(rep, err), err, rep.Chunks)
		}
		named := map[string]bool{}
		for _, x := range rep.Findings {
			named[x.File] = x.Reason != ""
		}
		for i, path := range paths {
			if !named[path] {
				t.Fatalf("byte %d: nothing is found with %q for %q", at, data[at]^flips[i], data[at])
			}
		}
		for _, f := range files {
			if _, err := f.WriteAt(data[at:at+1], int64(at)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// How a chunk was broken, and what verify says of it.
func TestCorruption(t *testing.T) {
	s := signer(t)
	_, lines := vectorLines(t)
	_, other := chunk(t, s, 8, lines, nil)
	stranger, err := sign.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, foreign := chunk(t, stranger, 7, lines, nil)
	_, claimed := chunk(t, s, 7, lines, nil)
	envelope := func(data []byte) []string { return strings.SplitAfter(strings.TrimSuffix(string(data), "\n"), "\n") }
	join := func(lines []string) string { return strings.Join(lines, "") + "\n" }
	resign := func(edit func(string) string) func([]string) string {
		return func([]string) string {
			_, b := chunk(t, s, 7, lines, edit)
			return string(b)
		}
	}
	for _, c := range []struct {
		why, reason string
		line        int
		edit        func(lines []string) string // with their newlines, but for the last
	}{
		{"line removed", "not those that were signed", 10, func(l []string) string { return join(append(l[:3:3], l[4:]...)) }},
		{"line doubled", "not those that were signed", 12, func(l []string) string { return join(append(l[:4:4], l[3:]...)) }},
		{"lines swapped", "not those that were signed", 11, func(l []string) string { l[2], l[3] = l[3], l[2]; return join(l) }},
		{"last line before the envelope removed", "not those that were signed", 10, func(l []string) string { return join(append(l[:9:9], l[10])) }},
		{"envelope of another chunk", "signed for chunk:0000000000000008", 11, func(l []string) string { l[10] = envelope(other)[10]; return join(l) }},
		{"envelope by a stranger", "signed with another key", 11, func(l []string) string { l[10] = envelope(foreign)[10]; return join(l) }},
		{"whole chunk by a stranger", "signed with key", 1, func([]string) string { return string(foreign) }},
		{"envelope doubled", "no kind", 11, func(l []string) string { return join(append(l[:11:11], "\n"+l[10])) }},
		{"envelope removed", "envelope", 10, func(l []string) string { return strings.Join(l[:10], "") }},
		{"envelope first", "header", 1, func(l []string) string { return l[10] + "\n" + strings.Join(l[:10], "") }},
		{"header only", "has 1 lines", 1, func(l []string) string { return l[0] }},
		{"header and envelope only", "has 2 lines", 2, func(l []string) string { return l[0] + l[10] + "\n" }},
		{"header removed", "header", 1, func(l []string) string { return join(l[1:]) }},
		{"header doubled", "second header", 2, func(l []string) string { return join(append([]string{l[0]}, l...)) }},
		{"cut in the middle", "cut off", 5, func(l []string) string { b := strings.Join(l[:5], ""); return b[:len(b)-20] }},
		{"cut in the envelope", "cut off", 11, func(l []string) string { b := join(l); return b[:len(b)-50] }},
		{"no newline at the end", "cut off", 11, func(l []string) string { return strings.Join(l, "") }},
		{"two newlines at the end", "not a canonical envelope", 12, func(l []string) string { return join(l) + "\n" }},
		{"CRLF at the end", "not a canonical envelope", 11, func(l []string) string { return strings.Join(l, "") + "\r\n" }},
		{"CRLF everywhere", "", 1, func(l []string) string { return strings.ReplaceAll(join(l), "\n", "\r\n") }},
		{"a newline first", "header", 1, func(l []string) string { return "\n" + join(l) }},
		{"an empty line", "the line is empty", 4, func(l []string) string { return join(append(l[:3:3], append([]string{"\n"}, l[3:]...)...)) }},
		{"a byte order mark", "header", 1, func(l []string) string { return "\ufeff" + join(l) }},
		{"one newline alone", "header", 1, func([]string) string { return "\n" }},
		{"not JSON", "not a JSON object", 1, func([]string) string { return "hello\nworld\n!\n" }},
		{"empty", "the file is empty", 0, func([]string) string { return "" }},
		{"larger than a chunk", "a chunk has at most", 0, func([]string) string { return strings.Repeat("x", evidence.MaxChunkBytes+1) }},
		{"payload with spare bits", "not a canonical envelope", 11, func(l []string) string {
			_, b := chunk(t, s, 10, lines, nil) // a statement longer by one byte than the vector's, so that base64 pads it
			l = envelope(b)
			l[10] = spareBits(t, l[10], `"payload":"`)
			return join(l)
		}},
		{"signature with spare bits", "not a canonical envelope", 11, func(l []string) string {
			l[10] = spareBits(t, l[10], `"sig":"`)
			return join(l)
		}},
		{"envelope with spaces", "not a canonical envelope", 11, func(l []string) string {
			l[10] = strings.ReplaceAll(l[10], `","`, `", "`)
			return join(l)
		}},
		// These are signed: the node itself wrote them wrong.
		{"a line with spaces, signed", "not in canonical form", 2, resign(func(b string) string { return strings.Replace(b, `"state":"hit",`, `"state": "hit",`, 1) })},
		{"a newer format, signed", `made by a newer version: format "probity-chunk/4" is not known to this verifier`, 1, resign(func(b string) string { return strings.Replace(b, "probity-chunk/1", "probity-chunk/4", 1) })},
		{"a member of version 2 in version 1, signed", "of probity-chunk/2 in a chunk of probity-chunk/1", 3, resign(func(b string) string {
			return strings.Replace(b, `"inline":"unknown",`, `"inline":"unknown","wanted":"greet_*",`, 1)
		})},
		{"a value of version 2 in version 1, signed", "of probity-chunk/2 in a chunk of probity-chunk/1", 3, resign(func(b string) string {
			return strings.Replace(b, `"symbolKind":"func",`, `"symbolKind":"inlined",`, 1)
		})},
		{"a session in version 1, signed", "of probity-chunk/2 in a chunk of probity-chunk/1", 3, resign(func(b string) string {
			return strings.Replace(b, `"path":"/usr/bin/greeter"}`, `"path":"/usr/bin/greeter","session":"exec"}`, 1)
		})},
		{"a kind that is not known, signed", "the kind \"note\" is not known", 10, resign(func(b string) string {
			return strings.Replace(b, `{"kind":"gap","gapId":"nri-1"`, `{"kind":"note","gapId":"nri-1"`, 1)
		})},
		{"a state that is not known, signed", "state", 2, resign(func(b string) string { return strings.Replace(b, `"state":"hit"`, `"state":"ran"`, 1) })},
		{"a confidence that its inputs do not give, signed", "its inputs give", 3, resign(func(b string) string { return strings.Replace(b, `"value":0.98`, `"value":0.99`, 1) })},
		{"other counts, signed", "what it says of the lines is not what they say", 11, resign(func(b string) string {
			return strings.Replace(b, `"reason":"runtimeDisconnected"`, `"reason":"suspended"`, 1)
		})},
		{"a line that is too long, signed", "at most", 2, resign(func(b string) string {
			return strings.Replace(b, `"source":"nri`, `"source":"`+strings.Repeat("x", 32<<10), 1)
		})},
		{"sound", "", -1, func([]string) string { return string(claimed) }},
	} {
		t.Run(c.why, func(t *testing.T) {
			broken := c.edit(strings.SplitAfter(strings.TrimSuffix(string(vectorBytes(t)), "\n"), "\n"))
			path := filepath.Join(t.TempDir(), "any name")
			if err := os.WriteFile(path, []byte(broken), 0o644); err != nil {
				t.Fatal(err)
			}
			rep, err := check(t, s.Public(), path)
			if c.line < 0 {
				if err != nil || !rep.Sound() {
					t.Fatal(rep.Findings, err)
				}
				return
			}
			if err != nil || verify.ExitCode(rep, err) != 1 || rep.Files != 1 {
				t.Fatalf("exit %d, %v, %d files", verify.ExitCode(rep, err), err, rep.Files)
			}
			found := false
			for _, f := range rep.Findings {
				if f.File != path {
					t.Errorf("finding of another file: %v", f)
				}
				found = found || f.Line == c.line && strings.Contains(f.Reason, c.reason)
			}
			if !found {
				t.Fatalf("want line %d: %q, got %v", c.line, c.reason, rep.Findings)
			}
		})
	}
}

// spareBits sets a bit that strict base64 has as 0 in the text after mark.
func spareBits(t *testing.T, line, mark string) string {
	t.Helper()
	at := strings.Index(line, mark) + len(mark)
	end := at + strings.IndexByte(line[at:], '"')
	text := line[at:end]
	pad := len(text) - len(strings.TrimRight(text, "="))
	if pad == 0 {
		t.Fatalf("%s has no spare bits", text)
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	last := len(text) - pad - 1
	changed := text[:last] + string(alphabet[strings.IndexByte(alphabet, text[last])|1]) + text[last+1:]
	a, _ := base64.StdEncoding.DecodeString(text)
	b, err := base64.StdEncoding.DecodeString(changed)
	if err != nil || !bytes.Equal(a, b) || changed == text {
		t.Fatalf("%s and %s do not decode alike", text, changed)
	}
	return line[:at] + changed + line[end:]
}

func TestNamesInASpool(t *testing.T) {
	s := signer(t)
	_, lines := vectorLines(t)
	name8, eight := chunk(t, s, 8, lines, nil)
	for _, c := range []struct {
		why, reason string
		make        func(spool string) (where string)
	}{
		{"renamed", "the file's name is not its chunk's", func(spool string) string { return put(t, spool, name8, vectorBytes(t)) }},
		{"another suffix", "the file's name is not its chunk's", func(spool string) string {
			from := put(t, spool, name8, eight)
			to := strings.TrimSuffix(from, ".ndjson") + ".bak"
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
			return to
		}},
		{"another directory", "not where the chunk belongs", func(spool string) string {
			from := put(t, spool, name8, eight)
			to := filepath.Join(spool, "ready", filepath.Base(from))
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
			return to
		}},
		{"the same number twice", "is there twice", func(spool string) string {
			put(t, spool, name8, eight)
			to := filepath.Join(spool, "ready", "9999999999", name8+".ndjson")
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to, eight, 0o644); err != nil {
				t.Fatal(err)
			}
			return to
		}},
		{"a link", "not a regular file", func(spool string) string {
			to := put(t, spool, name8, eight)
			if err := errors.Join(os.Rename(to, filepath.Join(spool, "elsewhere")), os.Symlink(filepath.Join(spool, "elsewhere"), to)); err != nil {
				t.Fatal(err)
			}
			return to
		}},
		{"a FIFO", "not a regular file", func(spool string) string {
			to := put(t, spool, name8, eight)
			if err := errors.Join(os.Remove(to), syscall.Mkfifo(to, 0o644)); err != nil {
				t.Fatal(err)
			}
			return to
		}},
	} {
		t.Run(c.why, func(t *testing.T) {
			spool := t.TempDir()
			put(t, spool, vector, vectorBytes(t))
			where := c.make(spool)
			rep, err := check(t, s.Public(), spool)
			if verify.ExitCode(rep, err) != 1 {
				t.Fatalf("exit %d, %v", verify.ExitCode(rep, err), err)
			}
			for _, f := range rep.Findings {
				if f.File == where && strings.Contains(f.Reason, c.reason) {
					return
				}
			}
			if c.why == "the same number twice" {
				// Which of two files is the copy nobody knows; here it is also misplaced.
				for _, f := range rep.Findings {
					if f.File == where {
						return
					}
				}
			}
			t.Fatalf("want %s: %q, got %v", where, c.reason, rep.Findings)
		})
	}
}

// Two files of one chunk, each named itself so that names are not looked at.
func TestRepeated(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, p := range []string{a, b} {
		if err := os.WriteFile(p, vectorBytes(t), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	rep, err := check(t, signer(t).Public(), a, b, a)
	if verify.ExitCode(rep, err) != 1 || len(rep.Findings) != 1 || rep.Findings[0].File != b || !strings.Contains(rep.Findings[0].Reason, "twice") {
		t.Fatal(rep.Findings, err)
	}
}

func TestCouldNotLook(t *testing.T) {
	key := signer(t).Public()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "spool")
	if err := os.MkdirAll(filepath.Join(empty, "ready", "0000000000"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		why   string
		paths []string
		exit  int
	}{
		{"missing path", []string{filepath.Join(dir, "nothing")}, 3},
		{"no spool", []string{t.TempDir()}, 3},
		{"a spool without a chunk", []string{empty}, 3},
		{"a finding wins", []string{bad, empty, filepath.Join(dir, "nothing")}, 1},
		{"a sound file and a missing one", []string{"../testdata/" + vector + ".ndjson", filepath.Join(dir, "nothing")}, 3},
	} {
		rep, err := check(t, key, c.paths...)
		if got := verify.ExitCode(rep, err); got != c.exit || !errors.Is(err, verify.ErrLook) {
			t.Errorf("%s: exit %d, %v", c.why, got, err)
		}
	}
}

// A later line supersedes an earlier one, and a later coverage line extends what
// has not changed, whatever the order the chunks are read in.
func TestRows(t *testing.T) {
	s := signer(t)
	_, lines := vectorLines(t)
	spool := t.TempDir()
	put(t, spool, vector, vectorBytes(t))
	_, later := vectorLines(t)
	cover, idle := later[4].(*evidence.Coverage), later[5].(*evidence.Observation)
	end := evidence.TimeOf(cover.To.Std().Add(3e9))
	n := evidence.Uint64(5)
	idle.State, idle.Count, idle.FirstAt, idle.LastAt, idle.To = evidence.Hit, &n, end, end, end
	name, data := chunk(t, s, 8, []evidence.Line{idle}, nil)
	put(t, spool, name, data)
	final := evidence.TimeOf(end.Std().Add(3e9))
	cover.To, cover.Final = final, true
	name, data = chunk(t, s, 10, []evidence.Line{cover}, nil)
	put(t, spool, name, data)
	rep, err := check(t, s.Public(), spool)
	if err != nil || !rep.Sound() {
		t.Fatal(rep.Findings, err)
	}
	if len(rep.Rows) != 5 {
		t.Fatalf("%d rows", len(rep.Rows))
	}
	seen := 0
	for _, r := range rep.Rows {
		switch {
		case r.RunID != idle.RunID:
			if r.To != lines[0].(*evidence.Coverage).To {
				t.Errorf("another run was extended: %+v", r)
			}
		case r.ProbeID == "libgreet-hello":
			seen++
			if r.State != evidence.Hit || *r.Count != 5 || r.To != final || r.Image != "localhost/demo:latest" {
				t.Errorf("%+v", r)
			}
		case r.ProbeID == "exec":
			seen++
			if r.State != evidence.Hit || r.To != final || r.From != lines[6].(*evidence.Observation).From {
				t.Errorf("%+v", r)
			}
		}
	}
	if seen != 2 {
		t.Fatalf("%d of 2 rows of the run", seen)
	}
	if want := []verify.Hole{{"00112233445566ff", 1, 6}, {"00112233445566ff", 9, 9}}; !slices.Equal(rep.Holes, want) {
		t.Errorf("holes %v", rep.Holes)
	}
	var out bytes.Buffer
	if err := rep.WriteTable(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CONTAINER", "notArmed: symbolNotFound", ">=9007199254740993", "log: none", "sound: 3 sound chunks of 3 files", "0 findings", "sequence 9 to 9"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, out.String())
		}
	}
}

// What a container is called must not reach the terminal as it is.
func TestTableIsClean(t *testing.T) {
	s := signer(t)
	_, lines := vectorLines(t)
	lines[0].(*evidence.Coverage).ContainerName = "a\x1b[2Jb\u202ec\u009bd"
	lines[1].(*evidence.Observation).Path = "/x\ty\nz\x7f"
	spool := t.TempDir()
	name, data := chunk(t, s, 1, lines, nil)
	put(t, spool, name, data)
	rep, err := check(t, s.Public(), spool)
	if err != nil || !rep.Sound() {
		t.Fatal(rep.Findings, err)
	}
	var out bytes.Buffer
	if err := rep.WriteTable(&out); err != nil {
		t.Fatal(err)
	}
	if i := strings.IndexFunc(out.String(), func(r rune) bool { return r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 || r == '\u202e' }); i >= 0 {
		t.Fatalf("%q", out.String()[i:])
	}
}

// cosign, a verifier that is not ours, takes what we sign and refuses it when a
// byte of the blob is another.
func TestCosign(t *testing.T) {
	cosign := need.Cosign(t)
	dir := t.TempDir()
	spool := filepath.Join(dir, "spool")
	put(t, spool, vector, vectorBytes(t))
	newest := filepath.Join("..", "testdata", "0000000000000009-00112233445566ff.ndjson")
	bundles := filepath.Join(dir, "bundles")
	s := signer(t)
	rep, err := verify.Path(t.Context(), []string{spool, newest}, s.Public(), verify.Options{Bundles: bundles})
	if err != nil || !rep.Sound() {
		t.Fatal(rep.Findings, err)
	}
	pub := filepath.Join(dir, "node.pub")
	if err := os.WriteFile(pub, s.Public().PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSuffix(filepath.Base(newest), ".ndjson")
	bundle, blob := filepath.Join(bundles, name+".sigstore.json"), filepath.Join(bundles, name+".blob")
	run := func(predicate string) (string, error) {
		cmd := exec.CommandContext(t.Context(), cosign, "verify-blob-attestation", "--bundle", bundle, "--key", pub,
			"--type", predicate, "--insecure-ignore-tlog", blob)
		cmd.Env = append(os.Environ(), "HOME="+dir, "TUF_ROOT="+dir)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(evidence.PredicateType); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	bundle, blob = filepath.Join(bundles, vector+".sigstore.json"), filepath.Join(bundles, vector+".blob") // the first version
	if out, err := run(evidence.PredicateType); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := run("https://slsa.dev/provenance/v1"); err == nil {
		t.Fatalf("another predicate type is taken\n%s", out)
	}
	b := read(t, blob)
	b[len(b)/2] ^= 1
	if err := os.WriteFile(blob, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := run(evidence.PredicateType); err == nil {
		t.Fatalf("a blob with another byte is taken\n%s", out)
	}
}

func FuzzBytes(f *testing.F) {
	key := signer(f).Public()
	data := vectorBytes(f)
	f.Add(data)
	f.Add([]byte("\n\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, findings := verify.Bytes("f", b, key)
		if (c == nil) != (len(findings) > 0) {
			t.Fatal("a chunk and findings, or neither")
		}
		if c != nil && !bytes.Equal(b, data) {
			t.Fatalf("taken: %q", b)
		}
	})
}
