package kernels

import (
	"path/filepath"
	"testing"

	"probity/tests/kernels/guest"
	"probity/tests/need"
)

// TestClocks sets the wall clock of a machine and puts it to sleep, while an agent runs
// in it: both is done for real, and to nobody else. The test is the agent's own.
func TestClocks(t *testing.T) {
	m := one(t)
	dir := need.Kernel(t, m.QEMU(), m.Name)
	programs := programs(t, m.Arch)
	binary := filepath.Join(programs, testBinary("agent"))
	if err := goRun(m.Arch, "test", "-c", "-ldflags=-s -w", "-o", binary, "./agent"); err != nil {
		t.Fatal(err)
	}
	s := engineStep{pkg: "agent", tests: []string{"TestClocksOfAMachine", "TestChangeTimeForged"}, Step: guest.Step{
		Name: "clocks", Dir: "/src/agent", Limit: 180,
		Args: []string{"/tests/agent.test", "-test.v", "-test.timeout=170s", "-test.run=^(TestClocksOfAMachine|TestChangeTimeForged)$"},
		Env:  []string{need.ClockMachine + "=1", need.Require + "=root,bpf,cgroup2,clock,command:gcc"},
	}}
	boot := bootOrFail(t, m, dir, guest.Job{Cgroups: guest.V2, Steps: []guest.Step{s.Step}}, Load{
		"/init": filepath.Join(programs, "init"), "/tests/agent.test": binary, "/src/agent": "../../agent",
	})
	r, _ := boot.Step(s.Name)
	expected, err := Expected()
	if err != nil {
		t.Fatal(err)
	}
	judgeTests(t, s, r, m, expected)
}
