package evidence_test

import (
	"slices"
	"strings"
	"testing"

	"probity/evidence"
)

const aSuccession = `{"at":"2026-01-02T03:04:05.000000006Z","publicKey":"AAAA","next":"AAAB","signature":"AAAC"}`

// A succession has one spelling, and what is signed is it without the signature.
func TestSuccession(t *testing.T) {
	s, err := evidence.DecodeSuccession(aSuccession)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := evidence.EncodeSuccession(s); err != nil || string(b) != aSuccession {
		t.Errorf("%s, %v", b, err)
	}
	if b, err := s.Unsigned(); err != nil || string(b) != strings.Replace(aSuccession, `,"signature":"AAAC"`, "", 1) {
		t.Errorf("%s, %v", b, err)
	}
	for from, to := range map[string]string{
		`"AAAB"`: `"AAAA"`, `"next":"AAAB",`: ``, `"AAAC"`: `"AAA"`, `"at":"2026-01-02T03:04:05.000000006Z",`: ``, `{"at"`: `{ "at"`, `"AAAC"}`: `"AAAC","x":1}`, `"publicKey"`: `"PublicKey"`,
	} {
		if _, err := evidence.DecodeSuccession(strings.Replace(aSuccession, from, to, 1)); err == nil {
			t.Errorf("%s for %s: taken", to, from)
		}
	}
}

// An epoch's successions follow from one another and lead to its key, and a reader
// of the first version does not read past them.
func TestEpochSuccessions(t *testing.T) {
	at, err := evidence.DecodeSuccession(aSuccession)
	if err != nil {
		t.Fatal(err)
	}
	link := func(from, to string) evidence.Succession {
		return evidence.Succession{At: at.At, PublicKey: from, Next: to, Signature: "AAAC"}
	}
	var many []evidence.Succession
	for i := range evidence.MaxSuccessions + 1 {
		many = append(many, link([]string{"AAAA", "AAAB"}[i%2], []string{"AAAB", "AAAA"}[i%2]))
	}
	for why, c := range map[string]struct {
		format string
		list   []evidence.Succession
		ok     bool
	}{
		"none":                     {evidence.LogFormat, nil, true},
		"one":                      {evidence.LogFormat2, []evidence.Succession{link("AAAC", "AAAB")}, true},
		"two":                      {evidence.LogFormat2, []evidence.Succession{link("AAAC", "AAAD"), link("AAAD", "AAAB")}, true},
		"in the first version":     {evidence.LogFormat, []evidence.Succession{link("AAAC", "AAAB")}, false},
		"none in the second":       {evidence.LogFormat2, nil, false},
		"to another key":           {evidence.LogFormat2, []evidence.Succession{link("AAAC", "AAAD")}, false},
		"one left out":             {evidence.LogFormat2, []evidence.Succession{link("AAAC", "AAAD"), link("AAAE", "AAAB")}, false},
		"more than there is room":  {evidence.LogFormat2, many, false},
		"as many as there is room": {evidence.LogFormat2, many[:evidence.MaxSuccessions-1], true},
	} {
		for l := range leaves(t) {
			e, ok := l.(*evidence.EpochLeaf)
			if !ok {
				continue
			}
			e.PublicKey, e.Format, e.Successions = "AAAB", c.format, slices.Clone(c.list)
			b, err := evidence.EncodeLeaf(e, 9, at.At)
			if (err == nil) != c.ok {
				t.Errorf("%s: %v", why, err)
			}
			if err != nil {
				continue
			}
			if got, err := evidence.DecodeLeaf(string(b)); err != nil || len(got.(*evidence.EpochLeaf).Successions) != len(c.list) {
				t.Errorf("%s: %v", why, err)
			}
		}
	}
}

func FuzzSuccession(f *testing.F) {
	f.Add(aSuccession)
	f.Fuzz(func(t *testing.T, line string) {
		s, err := evidence.DecodeSuccession(line)
		if err != nil {
			return
		}
		if b, err := evidence.EncodeSuccession(s); err != nil || string(b) != line {
			t.Errorf("%q: written as %q, %v", line, b, err)
		}
	})
}
