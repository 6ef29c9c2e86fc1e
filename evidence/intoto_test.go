package evidence_test

import (
	"os"
	"strings"
	"testing"

	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"probity/evidence"
)

// in-toto's own library reads our statements, finds nothing in them that it does not
// know, and says that they are valid.
func TestInTotoReadsStatement(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.format, func(t *testing.T) {
			payload, err := os.ReadFile("testdata/" + v.statement)
			if err != nil {
				t.Fatal(err)
			}
			ours, err := evidence.DecodeStatement(string(payload))
			if err != nil {
				t.Fatal(err)
			}
			var s intoto.Statement
			if err := protojson.Unmarshal(payload, &s); err != nil { // an unknown member is an error
				t.Fatal(err)
			}
			if err := s.Validate(); err != nil {
				t.Error(err)
			}
			if s.GetType() != intoto.StatementTypeUri || s.GetPredicateType() != evidence.PredicateType || len(s.GetSubject()) != len(ours.Subject) {
				t.Errorf("%s", s.String())
			}
			for i, x := range s.GetSubject() {
				if x.GetName() != ours.Subject[i].Name || x.GetDigest()["sha256"] != ours.Subject[i].Digest.SHA256 {
					t.Errorf("subject %d: %v", i, x)
				}
			}
			log := s.GetPredicate().GetFields()["monitorLog"].GetStructValue().GetFields()["process"].GetListValue().GetValues()
			if len(log) != len(ours.Predicate.MonitorLog.Process) || len(log) == 0 {
				t.Errorf("%d items of the log", len(log))
			}
			// It is strict where it matters: a member of ours at the top level would not do.
			var other intoto.Statement
			if err := protojson.Unmarshal([]byte(strings.Replace(string(payload), `{"_type"`, `{"probity":1,"_type"`, 1)), &other); err == nil {
				t.Error("a member that is not in-toto's is taken")
			}
			// And what it calls invalid is not valid for us.
			bad := strings.Replace(string(payload), ours.Subject[0].Digest.SHA256, "x", 1)
			if err := protojson.Unmarshal([]byte(bad), &other); err == nil && other.Validate() == nil {
				t.Error("a digest that is none is taken")
			}
		})
	}
}

// A record without a probe type counts as one of the type unknown. No line is one:
// Decode takes none without.
func TestNoProbeTypeIsUnknown(t *testing.T) {
	var tally evidence.Tally
	lines := vectors[0].fileLines(t)
	l, err := evidence.Decode(lines[2])
	if err != nil {
		t.Fatal(err)
	}
	o := *l.(*evidence.Observation)
	o.ProbeType = ""
	tally.Add(&o)
	h, err := evidence.DecodeHeader(lines[0])
	if err != nil {
		t.Fatal(err)
	}
	counts := tally.Statement(h, strings.Repeat("0", 64)).Predicate.Probity.Observations
	if len(counts) != 1 || counts[0].ProbeType != evidence.UnknownProbe || counts[0].Count != 1 {
		t.Errorf("%+v", counts)
	}
	without := strings.Replace(lines[2], `"probeType":"uprobe",`, "", 1)
	if _, err := evidence.Decode(without); without == lines[2] || err == nil {
		t.Error("a line without a probe type is taken")
	}
}
