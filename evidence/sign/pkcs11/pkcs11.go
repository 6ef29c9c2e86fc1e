// Package pkcs11 reaches a node's key on a PKCS#11 token: an HSM, a smart card, or
// a software token.
//
// In: an RFC 7512 URI, the PIN's bytes, and the path of a helper. Out: a [sign.Key].
// A token's module is a shared library of its maker, which only a program linked
// against the C library can load, so the agent does not: it starts
// probity-pkcs11, which loads it, and asks it over its standard input and output
// ([wire]). True of an open key: the helper has found exactly one private key that
// the URI names, on P-256, and its public half.
//
// The package believes the helper nothing: its frames are bounded, a public key is
// parsed, a signature is checked by [sign], and what takes longer than a bound is
// killed with everything that it started. It trusts the helper's file and the
// module's, which must belong to root, or to the agent's user, and be in nobody else's
// reach, with the PIN: so a module that is bad can use the token for anything, and do
// what an unprivileged process of its user can. The helper gives up all capabilities
// before it loads the module; as another user it can be run where the agent may change
// users.
//
// It is not a control against root on the node, who can ask the token as long as
// they are root and the token is there.
package pkcs11

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"probity/evidence/sign"
	"probity/evidence/sign/pkcs11/wire"
)

// DefaultHelper is where packages put it.
const DefaultHelper = "/usr/libexec/probity/probity-pkcs11"

// How long the helper may take: to load its module, log in and find the key, or
// make it; and for a signature. Tokens on a network are slow.
const (
	openPatience = 30 * time.Second
	signPatience = 10 * time.Second
	killPatience = 5 * time.Second
)

// Config says how to reach a key.
type Config struct {
	Helper string // DefaultHelper if empty; absolute
	URI    URI
	PIN    []byte // empty if the token wants none
	// User runs the helper as another user, by numbers; nil as the agent's own.
	User *User
	// Patience bounds each answer; 0 is the default.
	Patience time.Duration
}

// User is a uid and its gid. There are no further groups but Groups.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Key is a key on a token.
type Key struct {
	cfg    Config
	public *sign.PublicKey
	cmd    *exec.Cmd
	in     *os.File // the helper reads it
	out    *os.File // and writes this
	said   *tail    // what it wrote to its standard error
	once   sync.Once
	ended  string // how the process did
}

// ErrPIN is wrapped where the token refused the PIN. Tried again a few times, it locks
// itself.
var ErrPIN = errors.New("the token refuses the PIN")

// ErrLocked is wrapped where the token has locked itself: no PIN is tried any more, until
// its security officer has set it again.
var ErrLocked = errors.New("the token's PIN is locked")

// Open starts the helper and has it open the key.
func Open(cfg Config) (*Key, error) {
	k, err := start(cfg, false)
	if err != nil {
		return nil, fmt.Errorf("open the token's key: %w", err)
	}
	return k, nil
}

// Generate has the token make the key, which must not be there yet, and opens it.
func Generate(cfg Config) (*Key, error) {
	k, err := start(cfg, true)
	if err != nil {
		return nil, fmt.Errorf("make a key on the token: %w", err)
	}
	return k, nil
}

func start(cfg Config, generate bool) (_ *Key, err error) {
	if cfg.Helper == "" {
		cfg.Helper = DefaultHelper
	}
	switch err := ours(cfg.Helper); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the helper: %w (package probity-pkcs11, or keyHelper: in the configuration)", err)
	case err != nil:
		return nil, fmt.Errorf("the helper: %w", err)
	}
	if err := ours(cfg.URI.Module); err != nil {
		return nil, fmt.Errorf("the module: %w", err)
	}
	k := &Key{cfg: cfg, said: new(tail)}
	if err := k.run(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cfg.Helper, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close())
		}
	}()
	u := cfg.URI
	ask, err := json.Marshal(wire.Open{
		Module: u.Module, Token: u.Token, Manufacturer: u.Manufacturer, Serial: u.Serial, Model: u.Model, Slot: u.Slot,
		Object: u.Object, ID: u.ID, PIN: cfg.PIN, Generate: generate,
	})
	if err != nil {
		return nil, err
	}
	der, err := k.ask(wire.OpOpen, ask, openPatience)
	clear(ask)
	if err != nil {
		return nil, err
	}
	if k.public, err = sign.ParsePublic(der); err != nil {
		return nil, fmt.Errorf("what the helper says is the key: %w", err)
	}
	return k, nil
}

// ours refuses a program, or a module, that somebody else could exchange: it gets the
// PIN, and is executed as the agent's user.
func ours(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q: want an absolute path", path)
	}
	really, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	st, err := os.Stat(really)
	if err != nil {
		return err
	}
	switch {
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s: not a regular file", path)
	case stranger(st):
		return fmt.Errorf("%s: it belongs to uid %d", path, st.Sys().(*syscall.Stat_t).Uid)
	case st.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s: mode %04o lets others change it", path, st.Mode().Perm())
	}
	for _, p := range []string{path, really} {
		for dir := filepath.Dir(p); ; dir = filepath.Dir(dir) {
			st, err := os.Stat(dir)
			if err != nil {
				return err
			}
			if m := st.Mode(); stranger(st) || m.Perm()&0o002 != 0 && m&fs.ModeSticky == 0 {
				return fmt.Errorf("%s: in %s (uid %d, mode %v) others can put another in its place", path, dir, st.Sys().(*syscall.Stat_t).Uid, m)
			}
			if dir == "/" {
				break
			}
		}
	}
	return nil
}

// stranger says whether a file belongs to neither this process's user nor root.
func stranger(st fs.FileInfo) bool {
	uid := st.Sys().(*syscall.Stat_t).Uid
	return uid != 0 && int(uid) != os.Geteuid()
}

// withheld are variables that are for the agent alone.
var withheld = []string{"NOTIFY_SOCKET=", "WATCHDOG_", "LISTEN_", "CREDENTIALS_DIRECTORY=", "FDSTORE="}

func (k *Key) run() error {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer theirIn.Close()
	out, theirOut, err := os.Pipe()
	if err != nil {
		return errors.Join(err, in.Close())
	}
	defer theirOut.Close()
	k.in, k.out = in, out
	k.cmd = exec.Command(k.cfg.Helper)
	k.cmd.Stdin, k.cmd.Stdout, k.cmd.Stderr = theirIn, theirOut, k.said
	k.cmd.Dir = "/"
	k.cmd.WaitDelay = time.Second // something that it started may hold its standard error
	for _, e := range os.Environ() {
		keep := true
		for _, w := range withheld {
			keep = keep && !strings.HasPrefix(e, w)
		}
		if keep {
			k.cmd.Env = append(k.cmd.Env, e)
		}
	}
	// A group of its own, so that everything that a module starts can be ended.
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if u := k.cfg.User; u != nil {
		k.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	if err := k.cmd.Start(); err != nil {
		k.cmd = nil
		return errors.Join(err, in.Close(), out.Close())
	}
	return nil
}

// ask sends one request and reads its answer.
func (k *Key) ask(op byte, body []byte, most time.Duration) ([]byte, error) {
	if k.cfg.Patience > 0 {
		most = k.cfg.Patience
	}
	deadline := time.Now().Add(most)
	if err := errors.Join(k.in.SetWriteDeadline(deadline), k.out.SetReadDeadline(deadline)); err != nil {
		return nil, err
	}
	if err := wire.Write(k.in, op, body); err != nil {
		return nil, k.why("ask the helper", err, most)
	}
	kind, answer, err := wire.Read(k.out)
	if err != nil {
		return nil, k.why("read the helper's answer", err, most)
	}
	switch kind {
	case wire.Done:
		return answer, nil
	case wire.Failed:
		return nil, fmt.Errorf("the helper: %s", printable(string(answer)))
	case wire.Refused:
		return nil, fmt.Errorf("%w: %s", ErrPIN, printable(string(answer)))
	case wire.Locked:
		return nil, fmt.Errorf("%w: %s", ErrLocked, printable(string(answer)))
	}
	return nil, fmt.Errorf("the helper's answer begins with %d", kind)
}

// why says what became of a helper that did not answer.
func (k *Key) why(doing string, err error, most time.Duration) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%s: none within %v", doing, most)
	}
	k.Close() // waits for it, so that its last words are there
	return fmt.Errorf("%s: %w (%s%s)", doing, err, k.ended, k.said)
}

// Public implements [sign.Key].
func (k *Key) Public() *sign.PublicKey { return k.public }

// SignDigest implements [sign.Key].
func (k *Key) SignDigest(digest [32]byte) (r, s *big.Int, err error) {
	sig, err := k.ask(wire.OpSign, digest[:], signPatience)
	if err != nil {
		return nil, nil, err
	}
	if len(sig) != 64 {
		return nil, nil, fmt.Errorf("the helper's signature has %d bytes, want 64", len(sig))
	}
	return new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]), nil
}

// Close ends the helper, and everything in its process group. It is idempotent.
func (k *Key) Close() error {
	k.once.Do(func() {
		k.in.Close()
		k.out.Close()
		// Not yet waited for, so the number is still its own. A helper of another user
		// can be killed with CAP_KILL only; without it, it ends with its input.
		syscall.Kill(-k.cmd.Process.Pid, syscall.SIGKILL)
		gone := make(chan string, 1)
		go func() {
			k.cmd.Wait() // that it was killed is no error
			gone <- k.cmd.ProcessState.String()
		}()
		select {
		case k.ended = <-gone:
		case <-time.After(killPatience):
			k.ended = "it cannot be ended"
		}
	})
	return nil
}

// tail keeps the first of what a helper says on its standard error.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// Write implements io.Writer. It takes everything, so that the helper never waits.
func (t *tail) Write(p []byte) (int, error) {
	const most = 512
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[:min(len(p), most-len(t.b))]...)
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.b) == 0 {
		return ""
	}
	return ", and said " + printable(string(t.b))
}

func printable(s string) string { return fmt.Sprintf("%q", strings.TrimSpace(s)) }

// ReadPIN reads a PIN from a file that only its owner may read, without a newline at
// its end.
func ReadPIN(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("read the PIN: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the PIN: %w", err)
	}
	if m := st.Mode(); m.Type() != 0 || m.Perm()&(0o077&^fs.FileMode(groupOfOwn(st))) != 0 {
		return nil, fmt.Errorf("read the PIN: %s: mode %v lets others read it, or it is no regular file", path, m)
	}
	const most = 256
	b := make([]byte, most+2)
	n, err := f.Read(b)
	if n == 0 {
		return nil, fmt.Errorf("read the PIN: %s: empty (%w)", path, err)
	}
	b = b[:n]
	if b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	if len(b) == 0 || len(b) > most {
		return nil, fmt.Errorf("read the PIN: %s: %d bytes, want 1 to %d", path, len(b), most)
	}
	return b, nil
}

// groupOfOwn is what the group may do with a file whose group is root's: systemd's
// credentials are readable by it.
func groupOfOwn(st fs.FileInfo) uint32 {
	if st.Sys().(*syscall.Stat_t).Gid == 0 {
		return 0o040
	}
	return 0
}
