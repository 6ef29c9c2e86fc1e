package runtimes

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"probity/evidence"
	"probity/tests/need"
)

var writeCRIO = flag.Bool("write-crio", false, "write what a CRI-O that is installed made into testdata/crio")

// crioRun says what testdata/crio was made with.
type crioRun struct {
	CRIO   string `json:"cri-o"`
	Runc   string `json:"runc"`
	Kernel string `json:"kernel"`
}

// CRI-O is not in Debian, so that most machines have none: what an agent signed of a
// container of a real one is in testdata/crio with the node's public key, and verifies.
// All scenarios run under it where crio is installed; -write-crio makes that anew.
func TestCRIOSpool(t *testing.T) {
	const dir = "testdata/crio"
	if *writeCRIO {
		recordCRIO(t, dir)
	}
	code, out, errs := runProbity(t.Context(), t, Programs(t).Probity, "verify", filepath.Join(dir, "spool"), "--key", filepath.Join(dir, "node.pub"))
	if code != 0 || !strings.Contains(out, "of 1 run, 0 findings") || !strings.Contains(out, "log: sound") {
		t.Fatalf("exit code %d\n%s%s", code, out, errs)
	}
	e := ReadSpool(t, filepath.Join(dir, "spool"))
	if len(e.Coverage) == 0 {
		t.Fatal("no coverage line")
	}
	c := e.Coverage[len(e.Coverage)-1]
	if c.Runtime != "cri-o" || !c.Final || c.ContainerName != "recorded" || c.Pod == nil || c.Pod.Name != "recorded-pod" || c.Image != targetName || c.ImageDigest == "" || len(c.GapReasons) != 0 {
		t.Errorf("%+v", c)
	}
	for symbol, n := range map[string]uint64{"hello": 3, "goodbye": 1} {
		if o := want(t, e, c.ContainerID, "fn", symbol, evidence.Hit, "", n); !o.Complete || o.Path != "/bin/target" {
			t.Errorf("%+v", o)
		}
	}
	if o := want(t, e, c.ContainerID, "fn", "never", evidence.ArmedNoHit, "", 0); !o.Complete {
		t.Errorf("%+v", o)
	}
	var run crioRun
	if b, err := os.ReadFile(filepath.Join(dir, "run.json")); err != nil || json.Unmarshal(b, &run) != nil || !strings.HasPrefix(run.CRIO, "1.") {
		t.Errorf("%+v, %v", run, err)
	}
}

// recordCRIO has a real CRI-O run one container, and keeps what the agent signed.
func recordCRIO(t *testing.T, dir string) {
	t.Helper()
	if !hasCRIO() {
		t.Fatal("-write-crio: crio, pinns or conmon is not installed")
	}
	d := crioDriver{StartCRIO(t)}
	a := StartAgent(t, d.agent(AgentOptions{Policies: []string{targetPolicy}}))
	d.attach(t, a)
	targetImage(t, d)
	version, err := d.CRIO.criServer.runtime.Version(t.Context(), &cri.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	c := d.start(t, targetName, "recorded", "hello", "hello", "hello", "goodbye")
	if code := c.wait(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	settled(t, a)
	a.Stop(t)
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(a.Key())
	if err != nil {
		t.Fatal(err)
	}
	run, err := json.MarshalIndent(crioRun{version.RuntimeVersion, runcVersion(t, need.Runc(t)), string(bytes.TrimRight(uts.Release[:], "\x00"))}, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return os.MkdirAll(dir, 0o755) },
		func() error {
			return os.CopyFS(filepath.Join(dir, "spool/log"), os.DirFS(filepath.Join(a.Spool, "log")))
		},
		func() error {
			return os.CopyFS(filepath.Join(dir, "spool/ready"), os.DirFS(filepath.Join(a.Spool, "ready")))
		},
		func() error { return os.WriteFile(filepath.Join(dir, "node.pub"), key, 0o644) },
		func() error { return os.WriteFile(filepath.Join(dir, "run.json"), append(run, '\n'), 0o644) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}
