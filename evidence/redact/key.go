package redact

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// KeyFile is the node's key for tokens, in the state directory: 64 hex digits and a
// newline. Nodes that have the same one mark equal values alike.
const KeyFile = "redact.key"

const keyBytes = 32

// Key reads the key in the state directory, which one agent at a time has, or makes
// it. When it returns a new one, that is durable.
func Key(state string) ([]byte, error) {
	name := filepath.Join(state, KeyFile)
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(state, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read the key for redaction: %w", err)
	}
	defer f.Close() // read only: nothing can be lost
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the key for redaction: %w", err)
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read the key for redaction: %s is %v: want a file that only its owner can read (chmod 600), because who has it can find out what tokens stand for", name, st.Mode())
	}
	b, err := io.ReadAll(io.LimitReader(f, 2*keyBytes+2))
	if err != nil {
		return nil, fmt.Errorf("read the key for redaction: %w", err)
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("read the key for redaction: %s: %w", name, err)
	}
	return key, nil
}

func parseKey(b []byte) ([]byte, error) {
	text, ok := strings.CutSuffix(string(b), "\n")
	key, err := hex.DecodeString(text)
	if !ok || err != nil || len(key) != keyBytes || hex.EncodeToString(key) != text {
		return nil, fmt.Errorf("want %d lower-case hex digits and a newline; without the file a new one is made", 2*keyBytes)
	}
	return key, nil
}

func makeKey(state, name string) ([]byte, error) {
	key := make([]byte, keyBytes)
	_, _ = rand.Read(key) // never fails (crypto/rand since Go 1.24)
	if err := writeKey(state, name, key); err != nil {
		return nil, fmt.Errorf("make the key for redaction: %w", err)
	}
	return key, nil
}

// writeKey: open(O_EXCL), write, fsync, close, rename, fsync of the directory.
func writeKey(state, name string, key []byte) error {
	tmp := name + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(hex.EncodeToString(key) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	d, err := os.Open(state)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
