package process

import (
	"bufio"
	"os/exec"
	"testing"

	"probity/tests/need"
)

// An execve is seen, also of the program that runs already.
func TestExecutionOf(t *testing.T) {
	need.Root(t)
	need.Command(t, "sh")
	cmd := exec.Command("sh", "-c", `echo first; read x; exec sh -c 'echo second; read y'`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	says := bufio.NewReader(out)
	look := func(said string) Execution {
		t.Helper()
		if line, err := says.ReadString('\n'); line != said+"\n" {
			t.Fatalf("%q, %v", line, err)
		}
		e, err := ExecutionOf(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ExecutionOf(cmd.Process.Pid); err != nil || again != e {
			t.Errorf("%+v, then %+v, %v", e, again, err)
		}
		return e
	}
	first := look("first")
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	second := look("second")
	if first.Exe != second.Exe || first == second {
		t.Errorf("%+v, then %+v", first, second)
	}
	in.Close()
	_ = cmd.Wait()
	if e, err := ExecutionOf(cmd.Process.Pid); err == nil {
		t.Errorf("of a process that has ended: %+v", e)
	}
}
