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
	"syscall"

	"golang.org/x/sys/unix"
)

// The files of a key.
const (
	KeyFile    = "node.key" // PKCS#8, PEM, 0600
	PublicFile = "node.pub" // SubjectPublicKeyInfo, PEM, 0644
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
	if err := private(dir); err != nil {
		return nil, fmt.Errorf("node key: %s: %w", dir, err)
	}
	s, err := load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Lstat(filepath.Join(dir, PublicFile)); statErr == nil {
			return nil, fmt.Errorf("%w: %s is in %s and %s is not: put the key back, or move %s away to begin with a new one", ErrKeyLost, PublicFile, dir, KeyFile, PublicFile)
		}
		if err := create(dir); err != nil {
			return nil, fmt.Errorf("create node key: %w", err)
		}
		s, err = load(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	if err := s.publish(dir); err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	return s, nil
}

// private returns an error if anybody but this process's user, the group of its
// own, and root can change what is in dir.
func private(dir string) error {
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

func create(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	err = place(dir, KeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil // somebody else was first
	}
	return err
}

// publish makes sure that node.pub is there and is the public half.
func (s *Signer) publish(dir string) error {
	want := s.pub.PEM()
	err := place(dir, PublicFile, want, 0o644)
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
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: %s in %s is not the public half of %s", ErrKeyLost, PublicFile, dir, KeyFile)
	}
	return nil
}

// place makes name durable with content b; fs.ErrExist if it is there.
func place(dir, name string, b []byte, mode os.FileMode) (err error) {
	if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
		return fs.ErrExist // spares a start on a read-only directory
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
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
