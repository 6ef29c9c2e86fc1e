//go:build unix

package sign

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"probity/evidence"
)

// The files of a key.
const (
	KeyFile    = "node.key"   // PKCS#8, PEM, 0600
	PublicFile = "node.pub"   // SubjectPublicKeyInfo, PEM, 0644
	ChainFile  = "node.chain" // how it came to follow those before it: successions, one a line, 0644
)

// ErrKeyLost is wrapped when node.pub and node.key do not belong together. A
// new key would sign on as if nothing had happened, and nobody could verify the
// spool with one key any more; somebody has to decide.
var ErrKeyLost = errors.New("the node's key is lost")

// LoadOrCreate reads node.key in dir, or creates it and node.pub at the first
// start.
//
// System calls, in order, for a new key: open(O_EXCL) of a temporary name,
// write, fsync, link to node.key (which fails if it is there: of two agents
// that start at once one wins and both use its key), unlink, fsync of dir; then
// the same for node.pub. After a crash in between there may be a node.key without
// node.pub, which is completed, but never a node.pub without node.key.
//
// A directory in which others can put another key in this one's place is refused.
func LoadOrCreate(dir string) (*Signer, error) {
	if err := Private(dir); err != nil {
		return nil, fmt.Errorf("node key: %s: %w", dir, err)
	}
	s, err := load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Lstat(filepath.Join(dir, PublicFile)); statErr == nil {
			return nil, fmt.Errorf("%w: %s is in %s and %s is not: put the key back, say in the configuration (key:) where it is, or move %s away to begin with a new one", ErrKeyLost, PublicFile, dir, KeyFile, PublicFile)
		}
		if _, err := CreateFile(dir, KeyFile); err != nil && !errors.Is(err, fs.ErrExist) { // else somebody else was first
			return nil, fmt.Errorf("create node key: %w", err)
		}
		s, err = load(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	if err := Settle(dir, s); err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	return s, nil
}

// Load reads node.key in dir, and which keys it follows. It writes nothing.
func Load(dir string) (*Signer, error) {
	if err := Private(dir); err != nil {
		return nil, fmt.Errorf("node key: %s: %w", dir, err)
	}
	s, err := load(dir)
	if err == nil {
		err = Recall(dir, s)
	}
	if err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	return s, nil
}

// Private returns an error if anybody but this process's user, the group of its
// own, and root can change what is in dir.
func Private(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if err := owned(st); err != nil {
		return err
	}
	if m := st.Mode().Perm(); m&0o002 != 0 || m&0o020 != 0 && int(st.Sys().(*syscall.Stat_t).Gid) != os.Getegid() {
		return fmt.Errorf("mode %04o lets others put another key there", m)
	}
	return nil
}

// owned returns an error if a file belongs to neither this process's user nor
// root.
func owned(st fs.FileInfo) error {
	if uid := st.Sys().(*syscall.Stat_t).Uid; uid != 0 && int(uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to uid %d", uid)
	}
	return nil
}

func load(dir string) (*Signer, error) {
	path := filepath.Join(dir, KeyFile)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	if err := owned(st); err != nil {
		return nil, fmt.Errorf("%s: %w: its owner can read the key", path, err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %04o lets others read the key, want 0600 (and somebody may have it already)", path, st.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	s, err := ParsePrivate(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// CreateFile makes a key in a file of dir, which must not be there: else the error
// is fs.ErrExist.
func CreateFile(dir, name string) (*Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := Place(dir, name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return nil, err
	}
	return newSigner(key)
}

// Settle makes a key the node's: it reads which keys it follows, and makes sure that
// node.pub is there and is its public half. Another key's node.pub gives way only
// to one that follows it.
func Settle(dir string, s *Signer) error {
	if err := Recall(dir, s); err != nil {
		return err
	}
	want := s.pub.PEM()
	err := Place(dir, PublicFile, want, 0o644)
	if err == nil || !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, PublicFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := io.ReadAll(io.LimitReader(f, MaxKeyFile+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", PublicFile, err)
	}
	if bytes.Equal(got, want) {
		return nil
	}
	if was, err := LoadPublic(got); err == nil && s.Key(was.id) != nil {
		return replace(dir, PublicFile, want, 0o644)
	}
	return fmt.Errorf("%w: %s in %s is not the public half of %s, and nothing says that this one follows it: does the configuration (key:) say where the node's key is now?", ErrKeyLost, PublicFile, dir, s.pub.id)
}

// Published returns an error unless node.pub is the public half of s: a rotation may
// have come between opening the key and taking the state directory.
func Published(dir string, s *Signer) error {
	got, err := os.ReadFile(filepath.Join(dir, PublicFile))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, s.pub.PEM()) {
		return fmt.Errorf("%w: %s was changed meanwhile", ErrKeyLost, PublicFile)
	}
	return nil
}

// maxChain bounds node.chain.
const maxChain = 1 << 20

// Recall reads node.chain and tells s which keys it follows. What leads to another
// key is of a rotation that was not carried out, or of another node: it is left
// aside.
func Recall(dir string, s *Signer) error {
	f, err := os.OpenFile(filepath.Join(dir, ChainFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxChain+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", ChainFile, err)
	}
	links, err := ParseChain(b)
	if err != nil {
		return fmt.Errorf("%s in %s: %w", ChainFile, dir, err)
	}
	if err := s.Inherit(links); err != nil && !errors.Is(err, ErrOrphan) {
		return fmt.Errorf("%s in %s: %w", ChainFile, dir, err)
	}
	return nil
}

// ParseChain reads the content of node.chain.
func ParseChain(b []byte) (links []evidence.Succession, err error) {
	if len(b) > maxChain {
		return nil, fmt.Errorf("more than %d bytes", maxChain)
	}
	for line := range strings.Lines(string(b)) {
		text, whole := strings.CutSuffix(line, "\n")
		if !whole {
			return nil, errors.New("the last line is cut off")
		}
		l, err := evidence.DecodeSuccession(text)
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

// WriteChain makes node.chain durable in the place of the one before.
func WriteChain(dir string, links []evidence.Succession) error {
	var b []byte
	for _, l := range links {
		line, err := evidence.EncodeSuccession(l)
		if err != nil {
			return err
		}
		b = append(append(b, line...), '\n')
	}
	if len(b) > maxChain { // no start would read it any more
		return fmt.Errorf("%s: %d successions take more than %d bytes", ChainFile, len(links), maxChain)
	}
	return replace(dir, ChainFile, b, 0o644)
}

// Rename makes a file take another's place, durably.
func Rename(dir, from, to string) error {
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		return err
	}
	return syncDir(dir)
}

// replace makes name durable with content b in the place of what is there.
func replace(dir, name string, b []byte, mode os.FileMode) error {
	tmp := "." + name + ".new"
	if err := ignoreMissing(os.Remove(filepath.Join(dir, tmp))); err != nil {
		return err
	}
	if err := Place(dir, tmp, b, mode); err != nil {
		return err
	}
	return Rename(dir, tmp, name)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// errNoName means that a file system has no files without a name.
var errNoName = errors.New("no files without a name")

// Place makes name durable with content b; fs.ErrExist if it is there. Where a
// file system has no files without a name, as NFS and FUSE, a crash may leave a
// second one, .NAME-NUMBER, beside it.
func Place(dir, name string, b []byte, mode os.FileMode) (err error) {
	if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
		return fs.ErrExist // spares a start on a read-only directory
	}
	if err := placeWhole(dir, name, b, mode); !errors.Is(err, errNoName) {
		return err
	}
	f, err := os.CreateTemp(dir, "."+name+"-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreMissing(os.Remove(f.Name()))) }()
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Link(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
