package evidence_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"probity/evidence"
)

// Every reason of the closed lists is reached by a test, or the work that will
// reach it is named. A reason that nothing can produce would be a promise to
// readers that nobody keeps.
//
// reachedBy names test files or directories of tests, from the repository's
// root; one of the files there must name the reason. broughtBy is for what no
// code produces yet: whoever builds it moves the line.
type reach struct {
	reachedBy string
	broughtBy string
}

var gapReasons = map[evidence.GapReason]reach{
	evidence.GapFileChanged:         {reachedBy: "tests/runtimes"},
	evidence.GapLateAttach:          {reachedBy: "tests/runtimes"},
	evidence.GapRuntimeDisconnected: {reachedBy: "tests/runtimes"},
	evidence.GapAgentDown:           {reachedBy: "tests/runtimes"},
	evidence.GapAdopted:             {reachedBy: "tests/runtimes"},
	evidence.GapSpoolDropped:        {reachedBy: "evidence/spool/spool_test.go"},
	evidence.GapCoalesced:           {reachedBy: "evidence/witness"},
	evidence.GapKernelMissed:        {reachedBy: "evidence/witness"},
	evidence.GapRingFull:            {reachedBy: "evidence/witness"},
	evidence.GapDecodeError:         {reachedBy: "evidence/witness"},
	evidence.GapSetFull:             {reachedBy: "evidence/witness"},
	evidence.GapBudgetDisarm:        {reachedBy: "evidence/witness"},
	evidence.GapStoodDown:           {reachedBy: "evidence/witness"},
	evidence.GapAttributionLost:     {reachedBy: "evidence/witness"},
	evidence.GapUnarmedMapping:      {reachedBy: "agent"},
	evidence.GapPowerLoss:           {reachedBy: "agent"},
	evidence.GapAttachFailed:        {reachedBy: "evidence/witness"},
	evidence.GapLinkLost:            {reachedBy: "tests/runtimes"},

	evidence.GapPolicyChanged: {reachedBy: "evidence/witness"},
	evidence.GapSuspended:     {reachedBy: "agent"},
	evidence.GapClockStep:     {reachedBy: "agent"},
}

var notArmedReasons = map[evidence.NotArmedReason]reach{
	evidence.SymbolNotFound:         {reachedBy: "tests/runtimes"},
	evidence.FileNotFound:           {reachedBy: "tests/runtimes"},
	evidence.UnprobeableInstruction: {reachedBy: "tests/runtimes"},
	evidence.WouldBreakTarget:       {reachedBy: "tests/runtimes"},
	evidence.FileUnreadable:         {reachedBy: "tests/runtimes"},
	evidence.RemoteFilesystem:       {reachedBy: "bpf/probe"},
	evidence.ForeignArchitecture:    {reachedBy: "bpf/probe"},
	evidence.SharedCgroup:           {reachedBy: "agent"},
	evidence.EndedBeforeArmed:       {reachedBy: "agent"},
	evidence.KernelUnsupported:      {reachedBy: "bpf/probe"},
	evidence.AttachFailed:           {reachedBy: "bpf/probe"},
	evidence.OverBudget:             {reachedBy: "bpf/probe"},
	evidence.ManagedCode:            {reachedBy: "bpf/probe"},
	evidence.SandboxedRuntime:       {reachedBy: "agent"},

	evidence.PolicyRefused: {broughtBy: "policy work: what a policy may forbid"},
}

// constants maps a reason to the name of its constant.
func constants(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile("evidence.go")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\t(\w+)\s+(GapReason|NotArmedReason)\s+= "(\w+)"`).FindAllStringSubmatch(string(b), -1) {
		names[m[2]+" "+m[3]] = m[1]
	}
	return names
}

func TestReasonsAreReached(t *testing.T) {
	names := constants(t)
	for _, r := range evidence.GapReasons {
		checkReach(t, string(r), names["GapReason "+string(r)], gapReasons[r])
	}
	for _, r := range evidence.NotArmedReasons {
		checkReach(t, string(r), names["NotArmedReason "+string(r)], notArmedReasons[r])
	}
	if len(gapReasons) != len(evidence.GapReasons) || len(notArmedReasons) != len(evidence.NotArmedReasons) {
		t.Error("a reason is in the map and not in the closed list")
	}
	if len(names) != len(evidence.GapReasons)+len(evidence.NotArmedReasons) {
		t.Errorf("%d constants, but the closed lists have %d", len(names), len(evidence.GapReasons)+len(evidence.NotArmedReasons))
	}
}

func checkReach(t *testing.T, reason, constant string, r reach) {
	t.Helper()
	switch {
	case constant == "":
		t.Errorf("%s: no constant has it", reason)
		return
	case (r.reachedBy == "") == (r.broughtBy == ""):
		t.Errorf("%s: name the test that reaches it, or the work that brings it", reason)
		return
	case r.broughtBy != "":
		return
	}
	named := regexp.MustCompile(`evidence\.` + constant + `\b|"` + reason + `"|reason=` + reason + `\b`)
	root := filepath.Join("..", filepath.FromSlash(r.reachedBy))
	found := false
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil || found || e.IsDir() {
			return err
		}
		if !strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(path, ".txtar") {
			return nil
		}
		b, err := os.ReadFile(path)
		found = named.Match(b)
		return err
	})
	if err != nil || !found {
		t.Errorf("%s: no test in %s names it (%v)", reason, r.reachedBy, err)
	}
}
