package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"probity/bpf"
	"probity/evidence"
	"probity/runtime/cgroup"
	"probity/runtime/container"
	"probity/runtime/handoff"
	"probity/runtime/handoff/wire"
	"probity/runtime/oci"
	"probity/tests/need"
)

// someone is a user that is nobody's.
const someone = 61234

// newUserBox starts a box as the user's own runtime would: root of a user and a mount
// namespace of his, in which the overlay is mounted, and about to enter it. mount are
// commands before that, and lower is what the overlay is told; below is the cgroup's
// name below the one that is delegated to him.
func newUserBox(t *testing.T, mount, lower string) *box {
	t.Helper()
	need.Root(t)
	need.Command(t, "gcc", "unshare", "chroot", "sh", "mount")
	bin, err := target()
	must(t, err)
	b := &box{t: t}
	b.dir, err = os.MkdirTemp("", "agent-user")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(b.dir) })
	must(t, os.Chmod(b.dir, 0o755))
	for _, d := range []string{"u/lower/bin", "u/upper", "u/work", "u/merged", "root/bin"} {
		must(t, os.MkdirAll(filepath.Join(b.dir, d), 0o755))
	}
	for _, d := range []string{"u/lower", "root"} {
		must(t, os.WriteFile(filepath.Join(b.dir, d, "bin/target"), bin, 0o755))
	}
	must(t, filepath.Walk(b.dir+"/u", func(p string, _ os.FileInfo, err error) error {
		return errors.Join(err, os.Chown(p, someone, someone))
	}))
	script := fmt.Sprintf("set -e; cd %s/u; %s; mount -t overlay overlay -o lowerdir=%s,upperdir=$PWD/upper,workdir=$PWD/work $PWD/merged; echo; read x; exec chroot $PWD/merged /bin/target hello", b.dir, mount, lower)
	b.cmd = exec.Command("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script)
	b.cmd.Stderr = os.Stderr
	b.cgroup = need.Cgroup2(t)
	for _, d := range []string{"user.slice", fmt.Sprintf("user-%d.slice", someone), fmt.Sprintf("user@%d.service", someone), filepath.Base(b.dir)} {
		b.cgroup = filepath.Join(b.cgroup, d)
		dir := b.cgroup
		if err := os.Mkdir(dir, 0o755); err == nil {
			t.Cleanup(func() { must(t, os.Remove(dir)) })
		} else if !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	cg, err := os.Open(b.cgroup)
	must(t, err)
	defer cg.Close()
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: someone, Gid: someone}, UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	b.in, err = b.cmd.StdinPipe()
	must(t, err)
	out, err := b.cmd.StdoutPipe()
	must(t, err)
	b.out = bufio.NewReader(out)
	must(t, b.cmd.Start())
	b.end = sync.OnceFunc(func() {
		b.in.Close()
		_ = b.cmd.Wait()
	})
	t.Cleanup(b.end)
	if _, err := b.out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return b
}

// userNotice is what oci.UserNotice says of the box.
func (b *box) userNotice(id string) container.Notice {
	return container.Notice{
		Source: oci.UserSource(someone), Kind: container.Starting, Pid: b.cmd.Process.Pid, At: cgroup.BootTime(), Rootfs: b.dir + "/u/merged",
		Identity: container.Identity{Runtime: container.Podman, ID: id, User: someone, Image: container.Image{DigestReason: "it is his"}},
	}
}

// startUser has a user's box armed, if it is.
func (n *node) startUser(b *box, id string) {
	n.t.Helper()
	x := b.userNotice(id)
	x.Identity.BootID = n.bootID
	n.begin()
	defer n.end()
	if why := n.starting(context.Background(), x, yes, holdPid(x.Pid)); why != "" {
		n.t.Errorf("refused: %s", why)
	}
}

// A user's container is armed in the layers that are his, and its evidence says whose it
// is: a hit is one, and what was not seen is never called not executed.
func TestUserArmed(t *testing.T) {
	n := newNodeWith(t, Config{}, wanted+"  - {id: network, set: network}\n")
	b := newUserBox(t, "true", "$PWD/lower")
	n.startUser(b, "c1")
	b.in.Write([]byte("\n."))
	b.end()
	must(t, n.waitIdle(context.Background()))
	cov := n.coverage("c1")
	if cov == nil || cov.Source != "rootless:61234" || cov.Runtime != "podman" || cov.ImageDigest != "" || cov.ImageDigestReason == "" || !cov.Final {
		t.Fatalf("coverage %+v", cov)
	}
	if !oci.Delegated(cov.CgroupPath, someone) || cov.CgroupID == 0 {
		t.Errorf("cgroup %s", cov.CgroupPath)
	}
	for _, p := range cov.Probes {
		if want := map[string]evidence.State{"hello": evidence.Hit, "never": evidence.Partial, "exec": evidence.Hit, "network": evidence.NotArmed}[p.ProbeID]; p.State != want || p.SearchComplete && p.ProbeID != "exec" && p.ProbeID != "network" {
			t.Errorf("%+v, want %s", p, want)
		}
	}
	obs, gaps := n.lines("c1")
	if o := obs["network"]; o.State != evidence.NotArmed || o.Reason != evidence.OverBudget {
		t.Errorf("network: %+v", o)
	}
	if o := obs["hello"]; o.State != evidence.Hit || *o.Count != 1 || !o.Final {
		t.Errorf("hello: %+v", o)
	}
	if o := obs["never"]; o.State != evidence.Partial {
		t.Errorf("never: %+v", o)
	}
	if len(gaps) == 0 || gaps[0].Reason != evidence.GapUnarmedMapping || gaps[0].Detail != usersWord {
		t.Errorf("gaps %+v", gaps)
	}
}

// What a user calls his layers is text: he may have mounted something else there, where
// he sees it. The agent opens nothing of root's for him.
func TestUserLayersOfRoot(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newUserBox(t, "mount -t tmpfs none $PWD/../root; mkdir $PWD/../root/bin; cp lower/bin/target $PWD/../root/bin/", "$PWD/../root")
	n.startUser(b, "c1")
	used, _ := n.obj.Slots()
	if used != 0 {
		t.Errorf("%d sites are armed", used)
	}
	b.in.Write([]byte("\n."))
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	for _, id := range []string{"hello", "never"} {
		if o := obs[id]; o == nil || o.State != evidence.NotArmed || o.Reason != evidence.FileNotFound {
			t.Errorf("%s: %+v", id, o)
		}
	}
	for _, p := range n.coverage("c1").Probes {
		if p.ProbeID != "exec" && (p.SearchComplete || !strings.Contains(p.SearchReason, "claim")) {
			t.Errorf("%+v", p)
		}
	}
}

// A user may serve himself what he calls a layer, or the root of his container: nothing in
// it is opened, and the agent does not wait for him.
func TestUserServesHisFiles(t *testing.T) {
	for name, do := range map[string]func(*testing.T) *box{
		"a layer": func(t *testing.T) *box {
			b := newUserBox(t, "mkdir served; mount -t tmpfs none served; mkdir served/lower", "$PWD/served/lower")
			need.DeadFUSE(t, b.dir+"/u/served") // where the agent sees it
			return b
		},
		"the root": func(t *testing.T) *box {
			node := t.TempDir() + "/fuse"
			must(t, unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))))
			must(t, errors.Join(os.Chmod(node, 0o666), os.Chmod(filepath.Dir(node), 0o755), os.Chmod(filepath.Dir(filepath.Dir(node)), 0o755)))
			return newUserBox(t, "exec 3<>"+node+"; cd /; mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 none $OLDPWD/merged; echo; read x; exit; cd $OLDPWD", "$PWD/lower")
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, bpf.Options{})
			b := do(t)
			done := make(chan bool)
			go func() { n.startUser(b, "c1"); close(done) }()
			select {
			case <-done:
			case <-time.After(time.Minute):
				t.Fatal("it waits for the user's server")
			}
			b.end()
			must(t, n.waitIdle(context.Background()))
			obs, _ := n.lines("c1")
			if o := obs["hello"]; o == nil || o.State != evidence.NotArmed {
				t.Errorf("%+v", o)
			}
		})
	}
}

// mapper maps a file 5000 times.
const mapper = `#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	int fd = open(argv[1], O_RDONLY);
	for (int i = 0; i < 5000; i++)
		if (mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == MAP_FAILED)
			return 1;
	puts("");
	fflush(stdout);
	return read(0, argv[1], 1) < 0;
}
`

// Who has a file of his mapped very often, outside the container, has nothing attached to
// it: every fork of the machine would wait for that.
func TestUserMapsHisFile(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newUserBox(t, "true", "$PWD/lower")
	must(t, os.WriteFile(b.dir+"/mapper.c", []byte(mapper), 0o644))
	if out, err := exec.Command("gcc", "-o", b.dir+"/mapper", b.dir+"/mapper.c").CombinedOutput(); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	cmd := exec.Command(b.dir+"/mapper", b.dir+"/u/lower/bin/target")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: someone, Gid: someone}}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	n.startUser(b, "c1")
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	if o := obs["hello"]; o == nil || o.State != evidence.NotArmed || o.Reason != evidence.OverBudget {
		t.Errorf("%+v", o)
	}
}

// What is kept of users' layers is bounded apart from what is kept of root's.
func TestUserLayersAreHisOwn(t *testing.T) {
	n := newNode(t, bpf.Options{})
	n.users.layers.LayerEntries = 1
	mine, b := newBox(t, 1, "hello"), newUserBox(t, "true", "$PWD/lower")
	n.startUser(b, "his")
	n.notify(context.Background(), mine.notice("mine"), yes)
	for _, l := range n.runs() {
		if used := len(l.handle.Sites) > 0 && l.handle.Sites[0].Armed; used == l.user {
			t.Errorf("%s: armed %v", l.container, used)
		}
	}
	mine.end()
	b.end()
}

// A file in his layer that is not his is not one of his container's: he may have linked it
// there.
func TestUserLinksAnothersFile(t *testing.T) {
	n := newNode(t, bpf.Options{})
	b := newUserBox(t, "true", "$PWD/lower")
	must(t, errors.Join(os.Remove(b.dir+"/u/lower/bin/target"), os.Link(b.dir+"/root/bin/target", b.dir+"/u/lower/bin/target")))
	n.startUser(b, "c1")
	if used, _ := n.obj.Slots(); used != 0 {
		t.Errorf("%d sites are armed", used)
	}
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, _ := n.lines("c1")
	if o := obs["hello"]; o == nil || o.State != evidence.NotArmed || o.Reason != evidence.FileUnreadable {
		t.Errorf("%+v", o)
	}
}

// A container's id is its user's choice. One that is another's, or root's, is not armed
// under it, and changes nothing of what becomes of theirs.
func TestUserTakesAnothersID(t *testing.T) {
	n := newNode(t, bpf.Options{})
	mine := newBox(t, 1, "hello")
	n.notify(context.Background(), mine.notice("web"), yes)
	b := newUserBox(t, "true", "$PWD/lower")
	n.startUser(b, "web")
	if runs := n.runs(); len(runs) != 1 || runs[0].start.source != "hook" {
		t.Errorf("%d runs", len(runs))
	}
	mine.run()
	mine.end()
	b.end()
	must(t, n.waitIdle(context.Background()))
	gaps := n.gapsOf(evidence.ScopeSource)
	if len(gaps) != 1 || gaps[0].Source != "rootless:61234" || gaps[0].Reason != evidence.GapRuntimeDisconnected || !strings.Contains(gaps[0].Detail, "a container of that id is one of hook") {
		t.Errorf("gaps %+v", gaps)
	}
	if obs, _ := n.lines("web"); obs["hello"].State != evidence.Hit || obs["never"].State != evidence.ArmedNoHit {
		t.Errorf("%+v", obs)
	}
}

// What root's hook is answered does not depend on what users have.
func TestUserDoesNotAnswerForRoot(t *testing.T) {
	n := newNodeWith(t, Config{}, closedOn("hello", "armed"))
	b := newUserBox(t, "true", "$PWD/lower")
	n.startUser(b, "web")
	if len(n.runs()) != 1 {
		t.Fatalf("%d runs", len(n.runs()))
	}
	// All that he says of it is as it is: who may see the process may say so.
	state := fmt.Appendf(nil, `{"ociVersion":"1.0.2","id":"web","status":"creating","pid":%d,"bundle":"/b"}`, b.cmd.Process.Pid)
	if a := n.hookLate(handoff.Request{Stage: wire.CreateRuntime, Body: state}, true); !a.Refuse {
		t.Errorf("root's container is let go because a user has one of its name: %+v", a)
	}
	// Nor does a user's hook let root's go, or one of another user's.
	l := n.runs()[0]
	l.start.source, l.user = "hook", false
	open := make(chan struct{})
	armed := l.armed
	n.mu.Lock()
	l.armed = open
	n.mu.Unlock()
	n.userLate(handoff.Request{Stage: wire.CreateRuntime, Body: state, Peer: handoff.Peer{Uid: someone}}, true)
	n.userLate(handoff.Request{Stage: wire.CreateRuntime, Body: state, Peer: handoff.Peer{Uid: someone}}, false)
	n.mu.Lock()
	if l.released != 0 || l.unheard {
		t.Errorf("released at %d, unheard %v", l.released, l.unheard)
	}
	l.armed = armed
	n.mu.Unlock()
	b.end()
}

// Between the check and the arming he may have moved it to a cgroup that is not his alone.
func TestUserMovesHisContainer(t *testing.T) {
	n := newNode(t, bpf.Options{})
	mine, b := newBox(t, 1, "hello"), newUserBox(t, "true", "$PWD/lower")
	must(t, os.WriteFile(mine.cgroup+"/cgroup.procs", []byte(strconv.Itoa(b.cmd.Process.Pid)), 0))
	n.startUser(b, "c1")
	if len(n.runs()) != 0 {
		t.Error("it is a run")
	}
	b.end()
	if gaps := n.gapsOf(evidence.ScopeSource); len(gaps) != 1 || !strings.Contains(gaps[0].Detail, "it has moved to") {
		t.Errorf("%+v", gaps)
	}
}

// How many containers of users live, and are being armed, is bounded for each and for all.
func TestUsersRuns(t *testing.T) {
	x := container.Notice{Source: oci.UserSource(someone), Identity: container.Identity{ID: "one more", User: someone}}
	armed, arming := make(chan struct{}), make(chan struct{})
	close(armed)
	for name, c := range map[string]struct {
		source string
		n      int
		armed  chan struct{}
		want   string
	}{
		"his":                    {x.Source, userRuns, armed, "of uid 61234 live"},
		"one less":               {x.Source, userRuns - 1, armed, ""},
		"being armed":            {x.Source, userArming, arming, "are being armed"},
		"another's being armed":  {"rootless:1", userArming, arming, ""},
		"another's":              {"rootless:1", userRuns, armed, ""},
		"those of all users":     {"rootless:1", usersRuns, armed, "of users live"},
		"root's, however many":   {"hook", usersRuns, arming, ""},
		"root's, by another way": {"nri:/var/run/nri/nri.sock", usersRuns, arming, ""},
	} {
		a := &Agent{live: map[string]*live{}}
		for i := range c.n {
			a.live[strconv.Itoa(i)] = &live{container: strconv.Itoa(i), start: startKey{source: c.source}, armed: c.armed}
		}
		err := a.ofUserLocked(x, cgroup.ErrShared)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// Nothing is refused to a user: a policy's requirements are signed as not enforced.
func TestUserIsNotRefused(t *testing.T) {
	n := newNodeWith(t, Config{}, closedOn("nowhere", "armed"))
	b := newUserBox(t, "true", "$PWD/lower")
	n.startUser(b, "c1")
	b.in.Write([]byte("\n."))
	b.end()
	must(t, n.waitIdle(context.Background()))
	if cov := n.coverage("c1"); cov.FailPolicyEnforced == nil || *cov.FailPolicyEnforced || cov.Refused != "" {
		t.Errorf("%+v", cov)
	}
}

// What one user takes is bounded, and another has his own.
func TestUsersShare(t *testing.T) {
	u := newUsers()
	at := time.Unix(1e9, 0)
	var leave []func()
	for range userPeers {
		l, err := u.enter(1000, at)
		must(t, err)
		leave = append(leave, l)
	}
	if _, err := u.enter(1000, at); !errors.Is(err, errUserBusy) {
		t.Error(err)
	}
	if l, err := u.enter(1001, at); err != nil {
		t.Error(err)
	} else {
		l()
	}
	leave[0]()
	if _, err := u.enter(1000, at); err != nil {
		t.Error(err)
	}
	for range userStarts {
		must(t, u.start(1000, at))
	}
	if err := u.start(1000, at.Add(userEvery-1)); err == nil {
		t.Error("one more than is allowed")
	}
	must(t, u.start(1000, at.Add(userEvery)))
	if err := u.start(1000, at.Add(userEvery)); err == nil {
		t.Error("one more than is allowed")
	}
	must(t, u.start(1001, at))
	// Who is remembered is bounded by who has taken something of late.
	for uid := range uint32(3 * maxUsers) {
		if l, err := u.enter(2000+uid, at.Add(time.Duration(uid)*userStarts*userEvery)); err == nil {
			l()
		}
	}
	if len(u.by) > maxUsers {
		t.Errorf("%d users are remembered", len(u.by))
	}
}

// buildHook builds the hook.
func buildHook(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent-hook") // which users can enter
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	cmd := exec.Command("go", "build", "-o", dir+"/probity-hook", "probity/hook")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s, %v", b, err)
	}
	return dir + "/probity-hook"
}

// The socket of users is there if an operator wants it. Who is no user is hung up on, and
// a user is told nothing; what was not taken is signed, once in a while.
func TestRootlessSocket(t *testing.T) {
	need.Root(t)
	dir, err := os.MkdirTemp("", "agent-socket")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	path := dir + "/rootless.sock"
	hook := buildHook(t)
	n := newNodeWith(t, Config{RootlessHookSocket: path}, wanted)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o666 {
		t.Fatalf("%v, %v", st, err)
	}
	ask := func(uid uint32, stage, state string) {
		t.Helper()
		cmd := exec.Command(hook, stage, "--socket", path)
		cmd.Stdin = strings.NewReader(state)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := cmd.CombinedOutput(); err != nil || uid != 0 && len(out) > 0 {
			t.Errorf("uid %d: %s, %v", uid, out, err)
		}
	}
	for range 3 {
		ask(someone, "createRuntime", "junk")
	}
	ask(someone, "createRuntime", fmt.Sprintf(`{"ociVersion":"1.0.2","id":"a","status":"creating","pid":%d,"bundle":"/"}`, os.Getpid()))
	ask(someone, "poststop", "junk")
	ask(0, "createRuntime", "junk")
	if p := n.Status().Problems; len(p) != 0 {
		t.Errorf("users fill the problems: %q", p)
	}
	gaps := n.gapsOf(evidence.ScopeSource)
	count := map[string]int{}
	for _, g := range gaps {
		count[g.Source]++
		if g.Source == "rootless:61234" && count[g.Source] == 2 && !strings.HasPrefix(g.Detail, "3 starts; the first: ") {
			t.Errorf("%+v", g)
		}
	}
	if count["rootless"] != 1 || count["rootless:61234"] != 2 || len(count) != 2 {
		t.Errorf("gaps of %v", count)
	}
}

// Without the key there is no such socket.
func TestRootlessSocketIsOptIn(t *testing.T) {
	c, err := Config{}.WithDefaults()
	if err != nil || c.RootlessHookSocket != "none" {
		t.Errorf("%q, %v", c.RootlessHookSocket, err)
	}
}
