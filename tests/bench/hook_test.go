package bench

import (
	"os/exec"
	"strings"
	"testing"

	"probity/tests/need"
	"probity/tests/runtimes"
)

// BenchmarkHook measures the hook as a whole process, above the fork and exec
// of a program that does nothing: with an agent that answers, and with none.
func BenchmarkHook(b *testing.B) {
	need.Root(b)
	agent := runtimes.StartAgent(b, runtimes.AgentOptions{})
	bins := runtimes.Programs(b)
	hook := func(socket string) *exec.Cmd {
		cmd := exec.Command(bins.Hook, "createRuntime", "--socket", socket)
		// A container that is not there: the agent looks, and answers.
		cmd.Stdin = strings.NewReader(`{"ociVersion":"1.0.2","id":"bench","status":"creating","pid":1,"bundle":"/nowhere"}`)
		return cmd
	}
	const rounds = 200
	var floor, up, absent []float64
	for range rounds {
		floor = append(floor, timed(b, exec.Command("/bin/true")))
		up = append(up, timed(b, hook(agent.HookSocket)))
		absent = append(absent, timed(b, hook("/nonexistent/probity.sock")))
	}
	row(b, "hook, whole process, agent up, p50", "<= 2 ms", "%.2f ms (/bin/true: %.2f ms)", median(up), median(floor))
	row(b, "hook, whole process, socket absent, p50", "<= 2 ms", "%.2f ms (/bin/true: %.2f ms)", median(absent), median(floor))
	b.ReportMetric(median(up), "ms-up")
	b.ReportMetric(median(absent), "ms-absent")
}
