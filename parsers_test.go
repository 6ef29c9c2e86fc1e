package probity_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// parsers says of each function that takes bytes from outside which fuzz target
// of its package is given such bytes (Fuzz...), or why none has to. `make
// test-full` runs every fuzz target there is, by its name.
var parsers = map[string]string{
	"bpf.Decode":               "FuzzDecode",
	"bpf.IsSetEvent":           "compares one number",
	"bpf.Record":               "what is written is our own",
	"bpf.SetEntry.Decode":      "FuzzSetEntryDecode",
	"bpf.SetEntry.decode":      "FuzzSetEntryDecode",
	"bpf.SetKey.decode":        "FuzzSetEntryDecode",
	"bpf/kernel.isBTF":         "FuzzLoadBTF",
	"bpf/policy.Parse":         "FuzzParse",
	"bpf/policy.parse":         "FuzzParse",
	"bpf/probe.elfMagic":       "compares the first bytes",
	"bpf/probe.steady.Read":    "it fills a buffer",
	"bpf/symbol.Identify":      "FuzzIdentify",
	"bpf/symbol.NewResolver":   "FuzzResolver",
	"bpf/symbol.Read":          "FuzzRead",
	"bpf/symbol.read":          "FuzzRead",
	"bpf/symbol.open":          "FuzzRead",
	"bpf/symbol.decodeX86":     "FuzzWalk",
	"bpf/symbol.decodeARM64":   "FuzzWalk",
	"bpf/symbol.pclntabHead":   "FuzzPclntab",
	"bpf/symbol.nextNote":      "FuzzMarkers",
	"bpf/symbol.varint":        "FuzzGoTable",
	"bpf/symbol.strict.ReadAt": "the reader that others read by: it is given no bytes, it fills them",
	"bpf/symbol.source.ReadAt": "the same",
	"bpf/symbol.source.read":   "the same",
	"bpf/symbol.xzReader.Read": "FuzzUnxz",
	"bpf/symbol.xzReader.read": "FuzzUnxz",

	"bpf/symbol/demangle.Mangled": "FuzzOf",

	"evidence/delivery.valid.UnmarshalJSON": "it keeps nothing; what finds values in JSON has FuzzMembers",

	"evidence.Append":                     "takes a buffer to append to",
	"evidence.Encoder.Append":             "the same",
	"evidence.Loss.UnmarshalText":         "FuzzDecode",
	"evidence.Time.UnmarshalText":         "FuzzDecode",
	"evidence.Uint64.UnmarshalText":       "FuzzDecode",
	"evidence.ParseAck":                   "FuzzAck",
	"evidence/delivery.Parse":             "FuzzParse",
	"evidence/delivery.Joiner.Read":       "FuzzJoin",
	"evidence/redact.New":                 "the key, which is not looked at",
	"evidence/redact.parseKey":            "FuzzKey",
	"evidence/delivery.parseReceived":     "FuzzReceived",
	"evidence/delivery.ReadReceived":      "FuzzReceived",
	"evidence/sign.LoadPublic":            "FuzzLoadPublic",
	"evidence/sign.Open":                  "FuzzOpen",
	"evidence/sign.ParseChain":            "FuzzChain",
	"evidence/sign.Place":                 "writes them",
	"evidence/sign.ParsePrivate":          "the agent's own key",
	"evidence/sign.ParsePublic":           "FuzzLoadPublic",
	"evidence/sign.PublicKey.Verify":      "FuzzOpen",
	"evidence/sign.Signer.Envelope":       "what is signed is our own",
	"evidence/sign.Signer.Sign":           "the same",
	"evidence/spool.decodeWALHead":        "FuzzWAL",
	"evidence/spool.nextFrame":            "FuzzWAL",
	"evidence/spool.openFrame":            "takes a buffer to append to",
	"evidence/spool.readWAL":              "FuzzWAL",
	"evidence/tlog.ChangeOf":              "digests the bytes",
	"evidence/tlog.Claim":                 "FuzzCheckpoint",
	"evidence/tlog.Epochs.See":            "FuzzEpochs",
	"evidence/tlog.Key.Announce":          "what is signed is our own",
	"evidence/tlog.Live.See":              "digests the bytes",
	"evidence/tlog.Log.Append":            "appends the bytes",
	"evidence/tlog.OpenCheckpoint":        "FuzzCheckpoint",
	"evidence/tlog.ParseProof":            "FuzzProof",
	"evidence/tlog.Reader.Prove":          "takes what is in the log",
	"evidence/tlog.OriginOf":              "cuts at the first newline",
	"evidence/tlog.Witness.Verify":        "FuzzCheckpoint",
	"evidence/sign/pkcs11.tail.Write":     "keeps the first of them for an error's text, quoted",
	"evidence/sign/pkcs11/wire.ParseOpen": "FuzzRead",
	"evidence/sign/pkcs11/wire.Read":      "FuzzRead",
	"evidence/sign/pkcs11/wire.Write":     "what is written is our own",
	"evidence/sign/tpm.Open":              "FuzzPublicOf",
	"evidence/sign/tpm.PublicOf":          "FuzzPublicOf",
	"evidence/sign/tpm.conn.Send":         "what is sent is go-tpm's",
	"evidence/sign/tpm.decode":            "FuzzPublicOf",
	"evidence/trust.Parse":                "FuzzParse",
	"evidence/verify.Bytes":               "FuzzBytes",
	"evidence/verify.ParseProof":          "FuzzParseProof",
	"evidence/verify.ParseKept":           "FuzzKept",
	"evidence/verify.ParseWitnesses":      "FuzzWitnesses",
	"evidence/verify.archive.read":        "FuzzStdin",
	"evidence/verify.ending.Read":         "it fills a buffer",
	"evidence/verify.measured.Read":       "the same",
	"evidence/verify.source.Read":         "the same",
	"evidence/verify.isArchive":           "compares the first bytes",
	"evidence/verify.isGzip":              "the same",

	"runtime/cgroup.parseEvents":         "FuzzParseEvents",
	"runtime/cgroup.parseProc":           "FuzzParseProc",
	"runtime/events.layout.read":         "FuzzParse",
	"runtime/events.parseSpec":           "FuzzSpec",
	"runtime/handoff/wire.AppendAnswer":  "takes a buffer to append to",
	"runtime/handoff/wire.AppendHeader":  "the same",
	"runtime/handoff/wire.conn.read":     "FuzzReceive of runtime/handoff, FuzzAnswer: it fills a buffer",
	"runtime/image.parseContainer":       "FuzzStorage",
	"runtime/image.parseDockerContainer": "FuzzDocker",
	"runtime/image.parseImages":          "FuzzStorage",
	"runtime/image.parseLayers":          "FuzzStorage",
	"runtime/image.parseDiffIDs":         "FuzzManifest",
	"runtime/image.parseManifest":        "FuzzManifest",
	"runtime/image.readMounts":           "FuzzMounts",
	"runtime/nri.watched.Read":           "the protocol is the stub's: it fills a buffer",
	"runtime/nri.watched.Write":          "the same",
	"runtime/oci.Notice":                 "FuzzParseState, FuzzParseConfig",
	"runtime/oci.UserNotice":             "FuzzParseState, FuzzParseConfig",
	"runtime/oci.object.UnmarshalJSON":   "FuzzParseConfig",
	"runtime/oci.ParseState":             "FuzzParseState",
	"runtime/oci.parseState":             "FuzzParseState",
	"runtime/oci.parseConfig":            "FuzzParseConfig",
	"runtime/oci.parseObject":            "FuzzParseConfig",
	"runtime/oci.parseParent":            "FuzzParseParent",
	"runtime/oci.parseStart":             "FuzzParseParent",
	"runtime/oci.parseRuncState":         "FuzzParseSaved",
	"runtime/oci.parseCrunStatus":        "FuzzParseSaved",
	"runtime/process.counter.Read":       "it fills a buffer",
	"runtime/process.isFile":             "FuzzParse",
	"runtime/process.listed":             "FuzzListed",
	"runtime/process.numbers.parse":      "FuzzParse",
	"runtime/process.parse":              "FuzzParse",
	"runtime/process.parseLine":          "FuzzParse",
	"runtime/sandbox.Native":             "compares the first bytes",
	"runtime/sandbox.readAt":             "FuzzReadProgram",
	"runtime/sandbox.readProgram":        "FuzzReadProgram",
}

var parses = regexp.MustCompile(`^(?i)(parse|decode|read|unmarshal|load|identify|open|varint|next|listed|.*head$|.*magic$|is[A-Z])`)

// Who adds a function that reads bytes from outside gives it a fuzz target, or
// says here why it needs none.
func TestParsersAreFuzzed(t *testing.T) {
	targets := map[string][]string{} // by package
	tests(t, func(path string, _ *token.FileSet, syntax *ast.File) {
		for _, d := range syntax.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Fuzz") {
				pkg := filepath.ToSlash(filepath.Dir(path))
				targets[pkg] = append(targets[pkg], f.Name.Name)
			}
		}
	})
	found := map[string]bool{}
	for _, dir := range []string{"bpf", "evidence", "runtime"} {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() && d.Name() == "testdata" || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") || strings.HasSuffix(p, "_bpfel.go") {
				if err == nil && d.IsDir() && d.Name() == "testdata" {
					return filepath.SkipDir
				}
				return err
			}
			syntax, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, d := range syntax.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && takesBytes(f) && (f.Name.IsExported() || parses.MatchString(f.Name.Name)) {
					found[filepath.ToSlash(filepath.Dir(p))+"."+nameOf(f)] = true
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for f := range found {
		if parsers[f] == "" {
			t.Errorf("%s takes bytes: which fuzz target gives it any, or why does it need none?", f)
		}
	}
	for f, how := range parsers {
		pkg, _, _ := strings.Cut(f, ".")
		if !found[f] {
			t.Errorf("%s is no function that takes bytes any more", f)
		}
		for _, name := range regexp.MustCompile(`\bFuzz\w+(?: of [a-z/]+)?`).FindAllString(how, -1) {
			in := pkg
			if target, other, ok := strings.Cut(name, " of "); ok {
				name, in = target, other
			}
			if !slices.Contains(targets[in], name) {
				t.Errorf("%s: %s has no %s, it has %v", f, in, name, targets[in])
			}
		}
	}
}

func takesBytes(f *ast.FuncDecl) bool {
	for _, p := range f.Type.Params.List {
		switch types.ExprString(p.Type) {
		case "[]byte", "io.Reader", "io.ReaderAt":
			return true
		}
	}
	return false
}

func nameOf(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	return fmt.Sprintf("%s.%s", strings.TrimPrefix(types.ExprString(f.Recv.List[0].Type), "*"), f.Name.Name)
}
