package verify_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"probity/evidence"
	"probity/evidence/tlog"
	"probity/evidence/verify"
)

// mutation is a file that was changed in one way.
type mutation struct {
	name string
	data []byte
}

// mutations are ways to change the bytes of b from at on: every step bytes one is
// removed, said twice, another, a space, a line's end.
func mutations(b []byte, at, step int) (out []mutation) {
	add := func(how string, i int, parts ...[]byte) {
		if m := bytes.Join(parts, nil); !bytes.Equal(m, b) {
			out = append(out, mutation{fmt.Sprintf("byte %d %s", i, how), m})
		}
	}
	for i := at; i < len(b); i += step {
		add("removed", i, b[:i], b[i+1:])
		add("twice", i, b[:i+1], b[i:])
		for _, x := range []byte{b[i] ^ 1, b[i] ^ 0x20, ' ', '\n'} {
			add(fmt.Sprintf("as %q", x), i, b[:i], []byte{x}, b[i+1:])
		}
		for _, x := range []byte{' ', '\t', '0'} {
			add(fmt.Sprintf("after %q", x), i, b[:i], []byte{x}, b[i:])
		}
		add("cut", i, b[:i])
	}
	add("continued", len(b), b, []byte("\n"))
	add("continued", len(b), b, []byte("{}\n"))
	return out
}

// respelled are envelope lines that say what this one does to a lenient reader of
// JSON or base64.
func respelled(t testing.TB, line string) (out []mutation) {
	t.Helper()
	var e struct {
		PayloadType, Payload string
		Signatures           []struct{ KeyID, Sig string }
	}
	must(t, json.Unmarshal([]byte(line), &e))
	kind, payload, id, sig := e.PayloadType, e.Payload, e.Signatures[0].KeyID, e.Signatures[0].Sig
	one := fmt.Sprintf(`{"keyid":%q,"sig":%q}`, id, sig)
	der, err := base64.StdEncoding.DecodeString(sig)
	must(t, err)
	long := append([]byte{0x30, 0x81}, der[1:]...) // a length that is spelled longer than it need be
	padded := append(bytes.Clone(der), 0)
	for how, text := range map[string]string{
		"another order":            fmt.Sprintf(`{"payload":%q,"payloadType":%q,"signatures":[%s]}`, payload, kind, one),
		"signatures first":         fmt.Sprintf(`{"signatures":[%s],"payloadType":%q,"payload":%q}`, one, kind, payload),
		"another order within":     fmt.Sprintf(`{"payloadType":%q,"payload":%q,"signatures":[{"sig":%q,"keyid":%q}]}`, kind, payload, sig, id),
		"one more member":          strings.Replace(line, "{", `{"a":1,`, 1),
		"one more member at last":  strings.TrimSuffix(line, "}") + `,"a":1}`,
		"one more in a signature":  strings.Replace(line, `"keyid"`, `"a":1,"keyid"`, 1),
		"a member twice":           strings.Replace(line, "{", `{"payload":"",`, 1),
		"a signature's id twice":   strings.Replace(line, `"keyid"`, `"keyid":"","keyid"`, 1),
		"two signatures":           strings.Replace(line, one, one+","+one, 1),
		"another before":           strings.Replace(line, one, `{"keyid":"","sig":"AA=="},`+one, 1),
		"another behind":           strings.Replace(line, one, one+`,{"keyid":"","sig":"AA=="}`, 1),
		"an escaped name":          strings.Replace(line, `"payload"`, `"\u0070ayload"`, 1),
		"an escaped text":          strings.Replace(line, kind, strings.Replace(kind, "a", `\u0061`, 1), 1),
		"an escaped slash":         strings.Replace(line, kind, strings.Replace(kind, "/", `\/`, 1), 1),
		"other cases of a name":    strings.Replace(line, `"payload"`, `"PayLoad"`, 1),
		"base64 without padding":   strings.ReplaceAll(line, "=", ""),
		"base64 of addresses":      strings.NewReplacer("+", "-").Replace(line),
		"base64 with a line's end": strings.Replace(line, payload, payload[:8]+`\n`+payload[8:], 1),
		"base64 with a space":      strings.Replace(line, payload, payload[:8]+" "+payload[8:], 1),
		"base64 padded twice":      strings.Replace(line, sig, sig+"====", 1),
		"spaces":                   strings.ReplaceAll(line, ":", ": "),
		"a space at last":          line + " ",
		"a carriage return":        line + "\r",
		"a byte order mark":        "\ufeff" + line,
		"a longer length":          strings.Replace(line, sig, base64.StdEncoding.EncodeToString(long), 1),
		"a byte behind the DER":    strings.Replace(line, sig, base64.StdEncoding.EncodeToString(padded), 1),
		"a list":                   "[" + line + "]",
		"no id":                    strings.Replace(line, id, "", 1),
		"no signature":             strings.Replace(line, one, "", 1),
	} {
		if text != line {
			out = append(out, mutation{how, []byte(text)})
		}
	}
	if len(out) < 25 {
		t.Errorf("only %d ways to say the envelope otherwise", len(out))
	}
	return out
}

// The verifier in another language and ours judge alike: whatever somebody without a
// key does to a chunk's bytes, and how ever he spells its envelope, both refuse it.
func TestMutationsInPython(t *testing.T) {
	dir := t.TempDir()
	pub := filepath.Join(dir, "node.pub")
	key := signer(t).Public()
	must(t, os.WriteFile(pub, key.PEM(), 0o600))
	var args [][]string
	var names []string
	var ours []bool
	try := func(m mutation) {
		path := filepath.Join(dir, fmt.Sprint(len(args)))
		must(t, os.WriteFile(path, m.data, 0o600))
		rep, err := check(t, key, path)
		names, ours = append(names, m.name), append(ours, verify.ExitCode(rep, err) == 0)
		args = append(args, []string{pub, path})
	}
	for _, seq := range []int{7, 8, 9, 10} {
		b := read(t, fmt.Sprintf("../testdata/%016d-00112233445566ff.ndjson", seq))
		line := b[bytes.LastIndexByte(b[:len(b)-1], '\n')+1:]
		body := b[:len(b)-len(line)]
		try(mutation{"as it is", b})
		for _, m := range respelled(t, strings.TrimSuffix(string(line), "\n")) {
			try(mutation{m.name, append(append(bytes.Clone(body), m.data...), '\n')})
		}
		for _, m := range mutations(b, 0, 2003) {
			try(m)
		}
		for _, m := range mutations(b, len(body), 101) {
			try(m)
		}
	}
	agree(t, args, names, ours, 4)
}

// The same of what a spool has besides chunks: the log's checkpoint and entries, and
// what consumers acknowledge.
func TestSpoolMutationsInPython(t *testing.T) {
	n := newTheNode(t)
	must(t, os.MkdirAll(filepath.Join(n.dir, verify.AckDir), 0o700))
	tree, err := tlog.Claim(n.kept)
	must(t, err)
	ack, err := json.Marshal(evidence.Ack{Consumer: "shipper", Origin: tree.Origin, Size: evidence.Uint64(tree.Size), Root: tree.Root.String(), At: n.clock().Wall})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(n.dir, verify.AckDir, "shipper.json"), append(ack, '\n'), 0o600))
	dir := t.TempDir()
	pub := filepath.Join(dir, "node.pub")
	must(t, os.WriteFile(pub, n.signer.Public().PEM(), 0o600))
	var args [][]string
	var names []string
	var ours []bool
	try := func(file string, m mutation) {
		root := filepath.Join(dir, fmt.Sprint(len(args)))
		must(t, fs.WalkDir(os.DirFS(n.dir), ".", func(p string, e fs.DirEntry, err error) error {
			switch to := filepath.Join(root, p); {
			case err != nil:
				return err
			case e.IsDir():
				return os.Mkdir(to, 0o700)
			case p == file:
				return os.WriteFile(to, m.data, 0o600)
			default:
				return os.Link(filepath.Join(n.dir, p), to)
			}
		}))
		rep, err := check(t, n.signer.Public(), root)
		names, ours = append(names, file+": "+m.name), append(ours, verify.ExitCode(rep, err) == 0)
		args = append(args, []string{pub, root})
	}
	entries, err := filepath.Glob(filepath.Join(n.dir, "log/tile/entries/*/*"))
	must(t, err)
	if len(entries) == 0 {
		t.Fatal("no tile")
	}
	whole := 0
	for file, step := range map[string]int{"log/checkpoint": 5, strings.TrimPrefix(entries[len(entries)-1], n.dir+"/"): 701, "ack/shipper.json": 7} {
		b := read(t, filepath.Join(n.dir, file))
		whole++
		try(file, mutation{"as it is", b})
		for _, m := range mutations(b, 0, step) {
			try(file, m)
		}
	}
	agree(t, args, names, ours, whole)
}

// agree wants the other verifier to say of each what ours does, and both to take at
// least so many.
func agree(t *testing.T, args [][]string, names []string, ours []bool, atLeast int) {
	t.Helper()
	took := 0
	for i, r := range byPython(t, args) {
		if r.Code != 0 && r.Code != 1 {
			t.Errorf("%s: exit code %d: %s", names[i], r.Code, r.Out)
		}
		if ours[i] != (r.Code == 0) {
			t.Errorf("%s: ours takes it: %v; the other: %s", names[i], ours[i], strings.TrimSpace(r.Out))
		}
		if ours[i] {
			took++
		}
	}
	t.Logf("%d mutations, of which %d were taken", len(args), took)
	if took < atLeast {
		t.Errorf("%d were taken, and as many as %d were as they are", took, atLeast)
	}
}
