package verify_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"probity/evidence"
	"probity/evidence/tlog"
	"probity/evidence/verify"
)

// entry is one entry of an archive to be.
type entry struct {
	tar.Header
	body []byte
	raw  func([]byte) // changes the header's block after it was written
}

// entriesOf are those of a directory, below a prefix.
func entriesOf(t testing.TB, dir, prefix string) (list []entry) {
	t.Helper()
	must(t, fs.WalkDir(os.DirFS(dir), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		if e.IsDir() {
			list = append(list, entry{Header: tar.Header{Name: prefix + p + "/", Typeflag: tar.TypeDir, Mode: 0o755}})
			return nil
		}
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(p)))
		list = append(list, file(prefix+p, b))
		return err
	}))
	return list
}

func file(name string, b []byte) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(b))}, body: b}
}

func tarOf(t testing.TB, list []entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range list {
		must(t, w.Flush())
		at := out.Len()
		must(t, w.WriteHeader(&e.Header))
		if e.raw != nil {
			e.raw(out.Bytes()[at : at+512])
		}
		_, err := w.Write(e.body)
		must(t, err)
	}
	must(t, w.Close())
	return out.Bytes()
}

func zipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	must(t, errors.Join(err, w.Close()))
	return out.Bytes()
}

// written puts an archive into a file.
func written(t testing.TB, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "evidence")
	must(t, os.WriteFile(p, b, 0o600))
	return p
}

func namesOf(found []verify.Finding) (out []verify.Kind) {
	for _, f := range found {
		if !slices.Contains(out, f.Kind) {
			out = append(out, f.Kind)
		}
	}
	slices.Sort(out)
	return out
}

// A spool in an archive is verified as the spool is, its log too, whatever stands
// in front of its names, in whatever order, and from wherever it is read.
func TestArchive(t *testing.T) {
	n := newTheNode(t)
	n.acknowledged(t)
	want, err := check(t, n.signer.Public(), n.dir)
	must(t, err)
	two := append(entriesOf(t, n.dir, "a/"), entriesOf(t, newTheNode(t).dir, "b/")...)
	backwards := entriesOf(t, n.dir, "")
	slices.Reverse(backwards)
	for _, c := range []struct {
		why    string
		list   []entry
		chunks int
	}{
		{"the spool's content", entriesOf(t, n.dir, ""), 9},
		{"as `tar -C SPOOL .` writes it", append([]entry{{Header: tar.Header{Name: "./", Typeflag: tar.TypeDir}}}, entriesOf(t, n.dir, "./")...), 9},
		{"below directories that are called like a spool's", entriesOf(t, n.dir, "var/log/spool/"), 9},
		{"backwards", backwards, 9},
		{"with a global header", append([]entry{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}}}, entriesOf(t, n.dir, "")...), 9},
		{"with what is not of the spool", append(entriesOf(t, n.dir, "s/"), file("s/state/x", []byte("x")), file("README", nil)), 9},
		{"two spools, the other by another key", two, 9},
	} {
		t.Run(c.why, func(t *testing.T) {
			b := tarOf(t, c.list)
			for how, path := range map[string]string{"tar": written(t, b), "gzip": written(t, zipped(t, b)), "stdin": "-"} {
				rep, err := verify.Path(t.Context(), []string{path}, n.signer.Public(), verify.Options{Stdin: iotest.OneByteReader(bytes.NewReader(b[:len(b):len(b)]))})
				must(t, err)
				if rep.Chunks != c.chunks {
					t.Fatalf("%s: %d chunks, %v", how, rep.Chunks, rep.Findings)
				}
				if strings.HasPrefix(c.why, "two") {
					if got := namesOf(rep.Findings); !slices.Equal(got, []verify.Kind{verify.KeyUnknown}) || len(rep.Logs) != 1 {
						t.Errorf("%s: %v", how, rep.Findings)
					}
					continue
				}
				if !rep.Sound() || rep.Log != verify.LogSound || len(rep.Logs[0].Acknowledged) != 1 || !slices.EqualFunc(rep.Rows, want.Rows, sameRow) || rep.Files != 9 {
					t.Errorf("%s: %v, log %s, %d rows, %d files", how, rep.Findings, rep.Log, len(rep.Rows), rep.Files)
				}
			}
		})
	}
	// Chunks alone, as somebody may pack them: there is no log to check.
	var alone []entry
	for _, p := range n.chunks(t) {
		b, err := os.ReadFile(p)
		must(t, err)
		alone = append(alone, file(filepath.Base(p), b))
	}
	rep, err := check(t, n.signer.Public(), written(t, tarOf(t, alone)))
	if err != nil || !rep.Sound() || rep.Chunks != 9 || rep.Log != verify.LogNotChecked {
		t.Errorf("%v, %v, log %s", rep.Findings, err, rep.Log)
	}
	rep, err = check(t, n.signer.Public(), written(t, tarOf(t, []entry{file("README", nil)})))
	if verify.ExitCode(rep, err) != 3 {
		t.Errorf("an archive without a chunk: %v, %v", rep.Findings, err)
	}
}

func sameRow(a, b verify.Row) bool { return a.RunID == b.RunID && a.To == b.To && a.State == b.State }

// acknowledged is an acknowledgement of all there is.
func (n *theNode) acknowledged(t testing.TB) {
	t.Helper()
	tree, err := tlog.Claim(n.last)
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(n.dir, "ack"), 0o755))
	a := fmt.Sprintf(`{"consumer":"shipper","origin":%q,"size":"%d","root":%q,"at":"2026-01-02T03:04:05.000000000Z"}`, tree.Origin, tree.Size, tree.Root)
	must(t, os.WriteFile(filepath.Join(n.dir, "ack", "shipper.json"), []byte(a), 0o600))
}

// hostileArchives are archives that somebody made to be read.
var hostileArchives = []struct {
	why  string
	make func(t *testing.T, list []entry) []byte
	want []verify.Kind
}{
	{"a name that leads out", func(t *testing.T, l []entry) []byte {
		return tarOf(t, append(l, file("a/../../etc/passwd", []byte("x"))))
	}, kinds(verify.BadArchive)},
	{"an absolute name", func(t *testing.T, l []entry) []byte { return tarOf(t, append(l, file("/etc/passwd", []byte("x")))) }, kinds(verify.BadArchive)},
	{"a name with backslashes", func(t *testing.T, l []entry) []byte { return tarOf(t, append(l, file(`..\x`, []byte("x")))) }, kinds(verify.BadArchive)},
	{"a name in another form", func(t *testing.T, l []entry) []byte {
		return tarOf(t, append(l, file("ready//0000000000/x.ndjson", []byte("x"))))
	}, kinds(verify.BadArchive)},
	{"a name that a terminal acts on", func(t *testing.T, l []entry) []byte { return tarOf(t, append(l, file("\x1b[2J", nil))) }, kinds(verify.BadArchive)},
	{"a symbolic link instead of a chunk", func(t *testing.T, l []entry) []byte {
		i := chunkAt(t, l, 3)
		l[i].Typeflag, l[i].Linkname, l[i].Size, l[i].body = tar.TypeSymlink, "/etc/passwd", 0, nil
		return tarOf(t, l)
	}, kinds(verify.Misplaced, verify.Removed)},
	{"a hard link to a chunk", func(t *testing.T, l []entry) []byte {
		return tarOf(t, append(l, entry{Header: tar.Header{Name: "x", Linkname: l[chunkAt(t, l, 0)].Name, Typeflag: tar.TypeLink}}))
	}, kinds(verify.BadArchive)},
	// What the two say another program reads: GNU tar takes the names and sizes of the
	// first, and the other one's first name.
	{"a global header with a name and a size for all files", func(t *testing.T, l []entry) []byte {
		return tarOf(t, append([]entry{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "x", "size": "3"}}}}, l...))
	}, kinds(verify.BadArchive)},
	{"a file with two long names", func(t *testing.T, l []entry) []byte {
		long := entry{Header: tar.Header{Name: strings.Repeat("n", 120), Format: tar.FormatGNU, Typeflag: tar.TypeReg, Mode: 0o644}}
		gnu := tarOf(t, []entry{long})
		pax := tarOf(t, []entry{{Header: tar.Header{Name: strings.Repeat("p", 120), Format: tar.FormatPAX, Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{"comment": "x"}}}})
		return append(append(bytes.Clone(gnu[:1024]), pax[:len(pax)-1024]...), tarOf(t, l)...)
	}, kinds(verify.BadArchive)},
	{"a device", func(t *testing.T, l []entry) []byte {
		return tarOf(t, append(l, entry{Header: tar.Header{Name: "log/x", Typeflag: tar.TypeBlock, Devmajor: 8}}))
	}, kinds(verify.BadArchive)},
	{"a FIFO for a checkpoint", func(t *testing.T, l []entry) []byte {
		i := slices.IndexFunc(l, func(e entry) bool { return e.Name == "log/checkpoint" })
		l[i] = entry{Header: tar.Header{Name: "log/checkpoint", Typeflag: tar.TypeFifo}}
		return tarOf(t, l)
	}, kinds(verify.BadArchive, verify.LogMissing)},
	{"a sparse file", func(t *testing.T, l []entry) []byte {
		e := file("ready/0000000000/x.ndjson", nil)
		e.Format, e.raw = tar.FormatGNU, func(b []byte) { b[156] = tar.TypeGNUSparse; checksummed(b) }
		return tarOf(t, append(l, e))
	}, kinds(verify.Misplaced)},
	{"a sparse file in the log", func(t *testing.T, l []entry) []byte {
		e := file("log/x", nil)
		e.Format, e.raw = tar.FormatGNU, func(b []byte) { b[156] = tar.TypeGNUSparse; checksummed(b) }
		return tarOf(t, append(l, e))
	}, kinds(verify.BadArchive)},
	{"a chunk twice", func(t *testing.T, l []entry) []byte { return tarOf(t, append(l, l[chunkAt(t, l, 2)])) }, kinds(verify.Duplicated)},
	{"a checkpoint twice, the second another", func(t *testing.T, l []entry) []byte {
		return tarOf(t, append(l, file("log/checkpoint", []byte("x"))))
	}, kinds(verify.Duplicated)},
	{"one name in two spellings", func(t *testing.T, l []entry) []byte {
		return tarOf(t, append(l, file("./log/checkpoint", []byte("x"))))
	}, kinds(verify.Duplicated)},
	{"a chunk removed", func(t *testing.T, l []entry) []byte {
		return tarOf(t, slices.Delete(l, chunkAt(t, l, 4), chunkAt(t, l, 4)+1))
	}, kinds(verify.Removed)},
	{"all chunks removed", func(t *testing.T, l []entry) []byte {
		return tarOf(t, slices.DeleteFunc(l, func(e entry) bool { return strings.HasPrefix(e.Name, "ready/") }))
	}, kinds(verify.Removed)},
	{"the log removed", func(t *testing.T, l []entry) []byte {
		return tarOf(t, slices.DeleteFunc(l, func(e entry) bool { return strings.HasPrefix(e.Name, "log/") }))
	}, kinds(verify.LogMissing)},
	{"a chunk changed", func(t *testing.T, l []entry) []byte {
		i := chunkAt(t, l, 1)
		l[i].body = bytes.Replace(l[i].body, []byte("armedNoHit"), []byte("armedNoXit"), 1)
		return tarOf(t, l)
	}, kinds(verify.Malformed, verify.Modified)},
	{"a chunk under another's name", func(t *testing.T, l []entry) []byte {
		i, j := chunkAt(t, l, 1), chunkAt(t, l, 2)
		l[i].Name, l[j].Name = l[j].Name, l[i].Name
		return tarOf(t, l)
	}, kinds(verify.Misplaced)},
	{"a chunk that is larger than any", func(t *testing.T, l []entry) []byte {
		return tarOf(t, append(l, file("ready/0000000000/x.ndjson", make([]byte, evidence.MaxChunkBytes+1))))
	}, kinds(verify.Malformed)},
	{"cut off within a chunk", func(t *testing.T, l []entry) []byte {
		b := tarOf(t, l)
		return b[:bytes.LastIndex(b, []byte(`"payloadType"`))]
	}, kinds(verify.Truncated, verify.LogMissing, verify.Removed)},
	{"cut off between two entries", func(t *testing.T, l []entry) []byte {
		b := tarOf(t, append(slices.Clone(l), file("end", []byte("the end"))))
		return b[:bytes.Index(b, []byte("the end"))-512]
	}, kinds(verify.Truncated)},
	{"something behind the end", func(t *testing.T, l []entry) []byte { return append(tarOf(t, l), "more"...) }, kinds(verify.BadArchive)},
	{"an archive behind the end", func(t *testing.T, l []entry) []byte { return append(tarOf(t, l), tarOf(t, l)...) }, kinds(verify.BadArchive)},
	{"zeros without end", func(t *testing.T, l []entry) []byte { return append(tarOf(t, l), make([]byte, 2<<20)...) }, kinds(verify.BadArchive)},
	{"gzip cut off", func(t *testing.T, l []entry) []byte { b := zipped(t, tarOf(t, l)); return b[:len(b)-4] }, kinds(verify.Truncated)},
	{"gzip with another checksum", func(t *testing.T, l []entry) []byte { b := zipped(t, tarOf(t, l)); b[len(b)-5] ^= 1; return b }, kinds(verify.BadArchive)},
	{"gzip with something behind", func(t *testing.T, l []entry) []byte { return append(zipped(t, tarOf(t, l)), "more"...) }, kinds(verify.Truncated)},
	{"gzip of something else", func(t *testing.T, l []entry) []byte { return zipped(t, bytes.Repeat([]byte("x"), 4096)) }, kinds(verify.BadArchive)},
	{"a bomb", func(t *testing.T, l []entry) []byte { return bomb(t, l, "x", 1<<30) }, kinds(verify.BadArchive)},
	{"a bomb for a tile", func(t *testing.T, l []entry) []byte { return bomb(t, l, "log/tile/0/000", 1<<30) }, kinds(verify.BadArchive)},
	{"a thousand links", func(t *testing.T, l []entry) []byte {
		for i := range 5000 {
			l = append(l, entry{Header: tar.Header{Name: fmt.Sprint("x", i), Linkname: "/", Typeflag: tar.TypeSymlink}})
		}
		return tarOf(t, l)
	}, kinds(verify.BadArchive)},
	{"thousands of chunks that are none", func(t *testing.T, l []entry) []byte {
		for i := range 5000 {
			l = append(l, file(fmt.Sprintf("%d.ndjson", i), []byte("{")))
		}
		return tarOf(t, l)
	}, kinds(verify.BadArchive, verify.Truncated)},
	{"thousands of spools", func(t *testing.T, l []entry) []byte {
		for i := range 5000 {
			l = append(l, file(fmt.Sprintf("%d/log/checkpoint", i), []byte("x")))
		}
		return tarOf(t, l)
	}, kinds(verify.BadArchive, verify.LogDamaged)},
	{"a name of thousands of directories", func(t *testing.T, l []entry) []byte {
		return tarOf(t, append(l, file("log/"+strings.Repeat("x/", 100_000)+"x", nil)))
	}, kinds(verify.BadArchive)},
}

func kinds(k ...verify.Kind) []verify.Kind { return k }

// chunkAt is where the n-th chunk is.
func chunkAt(t testing.TB, list []entry, n int) int {
	t.Helper()
	for i, e := range list {
		if strings.HasSuffix(e.Name, ".ndjson") {
			if n == 0 {
				return i
			}
			n--
		}
	}
	t.Fatal("there are not so many chunks")
	return -1
}

// checksummed writes the checksum of a header that was changed.
func checksummed(b []byte) {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// bomb is an archive whose last entry is zeros.
func bomb(t testing.TB, list []entry, name string, size int64) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	must(t, err)
	head := tarOf(t, list)
	_, err = z.Write(head[:len(head)-1024])
	must(t, err)
	w := tar.NewWriter(z)
	must(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size}))
	zeros := make([]byte, 1<<20)
	for range 96 { // it is found out before it ends
		_, err := w.Write(zeros)
		must(t, err)
	}
	must(t, z.Flush())
	return out.Bytes()
}

func TestHostileArchives(t *testing.T) {
	n := newTheNode(t)
	for _, c := range hostileArchives {
		t.Run(c.why, func(t *testing.T) {
			b := c.make(t, entriesOf(t, n.dir, ""))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			rep, err := check(t, n.signer.Public(), written(t, b))
			runtime.ReadMemStats(&after)
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Clone(c.want)
			slices.Sort(want)
			got := namesOf(rep.Findings)
			if strings.HasPrefix(c.why, "cut off") || strings.HasPrefix(c.why, "gzip of") || strings.HasPrefix(c.why, "gzip cut") {
				// What else is missing depends on the order in the archive.
				if !slices.Contains(got, want[len(want)-1]) && !slices.Contains(got, c.want[0]) {
					t.Errorf("found %v, want %v: %v", got, want, rep.Findings)
				}
			} else if !slices.Equal(got, want) {
				t.Errorf("found %v, want %v: %v", got, want, rep.Findings)
			}
			if len(rep.Findings) > 3000 {
				t.Errorf("%d findings", len(rep.Findings))
			}
			if used := (after.TotalAlloc - before.TotalAlloc) >> 20; used > 64 {
				t.Errorf("%d MiB", used)
			}
			for _, f := range rep.Findings {
				if strings.ContainsFunc(verify.Printable(f.File), func(r rune) bool { return r < ' ' }) {
					t.Errorf("%q", f.File)
				}
			}
		})
	}
}

// The keys that follow a trusted one are found in an archive too, wherever its log is.
func TestRotationInArchive(t *testing.T) {
	n := nodeAt(t, t.TempDir())
	first := n.signer
	n.life(t, 1)
	n.succeeded(t)
	n.life(t, 2)
	list := entriesOf(t, n.dir, "")
	slices.SortStableFunc(list, func(a, b entry) int { return -strings.Compare(a.Name, b.Name) }) // ready before log
	rep, err := check(t, first.Public(), written(t, zipped(t, tarOf(t, list))))
	if err != nil || !rep.Sound() || rep.Chunks != 2 || len(rep.Followed) != 1 {
		t.Errorf("%v, %v, %d chunks", rep.Findings, err, rep.Chunks)
	}
}

// What the disk says is no finding.
func TestArchiveThatCannotBeRead(t *testing.T) {
	n := newTheNode(t)
	b := tarOf(t, entriesOf(t, n.dir, ""))
	gone := io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(errors.New("the disk is gone")))
	rep, err := verify.Path(t.Context(), []string{"-"}, n.signer.Public(), verify.Options{Stdin: gone})
	if !errors.Is(err, verify.ErrLook) || !strings.Contains(fmt.Sprint(err), "the disk is gone") {
		t.Errorf("%v, %v", err, rep.Findings)
	}
	for _, c := range []struct {
		why string
		in  io.Reader
	}{{"no standard input", nil}, {"an empty one", strings.NewReader("")}} {
		rep, err := verify.Path(t.Context(), []string{"-"}, n.signer.Public(), verify.Options{Stdin: c.in})
		if verify.ExitCode(rep, err) != 3 {
			t.Errorf("%s: %v, %v", c.why, err, rep.Findings)
		}
	}
}

// Chunks one behind another on standard input: each is found, and what is wrong with
// one does not touch its neighbours.
func TestStream(t *testing.T) {
	n := newTheNode(t)
	var all [][]byte
	for _, p := range n.chunks(t) {
		b, err := os.ReadFile(p)
		must(t, err)
		all = append(all, b)
	}
	lines := func(b []byte) [][]byte { return bytes.SplitAfter(b[:len(b)-1], []byte("\n")) }
	join := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	for _, c := range []struct {
		why    string
		in     []byte
		chunks int
		want   []verify.Kind
	}{
		{"whole", join(all...), 9, nil},
		{"the last without its newline", join(all...)[:len(join(all...))-1], 8, kinds(verify.Truncated)},
		{"one without its envelope", join(all[0], all[1][:bytes.LastIndexByte(all[1][:len(all[1])-1], '\n')+1], all[2]), 2, kinds(verify.Truncated)},
		{"one without its header", join(all[0], join(lines(all[1])[1:]...), []byte("\n"), all[2]), 2, kinds(verify.Malformed, verify.Modified)},
		{"one cut at a block", join(all[0], all[1][:1500], all[2]), 1, kinds(verify.Malformed, verify.Modified)},
		{"one twice", join(all[0], all[1], all[0]), 2, kinds(verify.Duplicated)},
		{"two through one another", join(lines(all[0])[0], lines(all[1])[0], lines(all[0])[1], lines(all[1])[1], lines(all[0])[2], lines(all[1])[2], lines(all[0])[3], []byte("\n"), lines(all[1])[3], []byte("\n")), 0,
			kinds(verify.Truncated, verify.Modified, verify.Malformed)},
		{"something else", []byte("hello\n"), 0, kinds(verify.Malformed, verify.Truncated)},
		{"something else between", join(all[0], []byte("hello\n"), all[1]), 2, kinds(verify.Malformed, verify.Truncated)},
		{"a line without end", join(all[0], bytes.Repeat([]byte("x"), 20<<20), []byte("\n"), all[1]), 2, kinds(verify.Malformed)},
		{"headers without end", bytes.Repeat(lines(all[0])[0], 5000), 0, kinds(verify.BadArchive, verify.Truncated)},
	} {
		t.Run(c.why, func(t *testing.T) {
			rep, err := verify.Path(t.Context(), []string{"-"}, n.signer.Public(), verify.Options{Stdin: bytes.NewReader(c.in)})
			must(t, err)
			want := slices.Clone(c.want)
			slices.Sort(want)
			if got := namesOf(rep.Findings); rep.Chunks != c.chunks || rep.Log != verify.LogNotChecked || !slices.Equal(got, want) {
				t.Errorf("%d chunks, log %s, %v", rep.Chunks, rep.Log, rep.Findings)
			}
			if len(rep.Findings) > 3000 {
				t.Errorf("%d findings", len(rep.Findings))
			}
		})
	}
}

// Whatever comes on standard input: it is never sound unless it is what was signed.
func FuzzStdin(f *testing.F) {
	key := signer(f).Public()
	data := vectorBytes(f)
	f.Add(data)
	f.Add(append(bytes.Clone(data), data...))
	b := tarOf(f, []entry{file("ready/"+evidence.ChunkPath(vector), data), file("log/checkpoint", []byte("x\n0\nx\n\n"))})
	f.Add(b)
	f.Add(zipped(f, b))
	f.Fuzz(func(t *testing.T, in []byte) {
		rep, err := verify.Path(t.Context(), []string{"-"}, key, verify.Options{Stdin: bytes.NewReader(in), Workers: 1})
		if rep.Chunks > 0 && !bytes.Contains(in, data) && !bytes.HasPrefix(in, []byte{0x1f, 0x8b}) {
			t.Fatal("taken")
		}
		if rep.Chunks == 0 && rep.Sound() && err == nil {
			t.Fatal("nothing is sound")
		}
	})
}
