//go:build unix

// Package nodekey keeps a node's identity: where its private key is, how it begins,
// and how another one follows it.
//
// In: the state directory, and a source: file, credential:NAME, tpm[:PATH] or a
// pkcs11: URI. Out: a [sign.Signer] that knows which keys its own follows. True on
// disk when a call returns: node.pub is the public half of the key that signs;
// node.chain has a succession for each change of it, signed by the key before; and
// what was there is overwritten by nothing but a rotation that was asked for.
//
// The package trusts the state directory and, of the sources, what their packages
// say. It is not a control against root on the node, who can read a file and use
// every other source: see docs/keys.md for what each protects from.
package nodekey

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/evidence/sign"
	"probity/evidence/sign/pkcs11"
	"probity/evidence/sign/tpm"
)

// TPMFile is the key of source tpm, in the state directory: of no use without that
// TPM.
const TPMFile = "node.tpm"

// nextFile says which key a rotation to a token is to: its source, and its public half.
// A token that cannot be reached does not tell.
const nextFile = "node.next"

// next is what a key's file is called until the rotation to it is carried out.
const next = ".next"

// The kinds of source.
const (
	File       = "file"
	Credential = "credential"
	TPM        = "tpm"
	PKCS11     = "pkcs11"
)

// Source is where a key is.
type Source struct {
	Kind string
	Name string     // of a credential
	Path string     // of a TPM
	URI  pkcs11.URI // of a token's key
	text string
}

func (s Source) String() string { return s.text }

// ParseSource reads "file" (or nothing), "credential:NAME", "tpm", "tpm:PATH" or a
// pkcs11: URI.
func ParseSource(text string) (Source, error) {
	kind, rest, more := strings.Cut(text, ":")
	s := Source{Kind: kind, text: text}
	switch {
	case text == "" || text == File:
		return Source{Kind: File, text: File}, nil
	case kind == Credential && credentialName(rest) == nil:
		s.Name = rest
	case text == TPM:
		s.Path = tpm.DefaultDevice
	case kind == TPM && filepath.IsAbs(rest) && !strings.Contains(rest, "\x00"):
		s.Path = rest
	case kind == PKCS11 && more:
		u, err := pkcs11.ParseURI(text)
		if err != nil {
			return Source{}, err
		}
		s.URI = u
	default:
		return Source{}, fmt.Errorf("key source %.80q: want file, credential:NAME, tpm, tpm:/PATH or a pkcs11: URI", text)
	}
	return s, nil
}

func credentialName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%.80q is no credential's name", name)
	}
	return nil
}

// Config says where a node's key is.
type Config struct {
	State  string // the state directory
	Source Source
	// Helper loads the modules of tokens; pkcs11.DefaultHelper if empty.
	Helper string
	// HelperUser is the user that the helper runs as; the agent's own if empty.
	HelperUser string
	// Existing takes a key that is on a token already where one would be made.
	Existing bool
}

// Open opens the key, or makes it where the source is a file and this is the first
// start. A TPM or a token that cannot be reached now is no error if it is known
// which key it has: what is signed meanwhile waits, and [sign.Signer.Ready] says
// why.
func Open(cfg Config) (*sign.Signer, error) {
	if cfg.Source.Kind == File {
		return sign.LoadOrCreate(cfg.State)
	}
	if err := sign.Private(cfg.State); err != nil {
		return nil, fmt.Errorf("node key: %s: %w", cfg.State, err)
	}
	s, err := cfg.reach(cfg.path(TPMFile))
	if err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	if err := sign.Settle(cfg.State, s); err != nil {
		return nil, errors.Join(fmt.Errorf("node key: %w", err), s.Close())
	}
	// Node.pub says it now. Where it stays it says nothing else.
	_ = os.Remove(cfg.path(nextFile))
	return s, nil
}

// look is Open, and writes nothing.
func look(cfg Config) (*sign.Signer, error) {
	if cfg.Source.Kind == File {
		s, err := sign.Load(cfg.State)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w (is the node's key a file, or where does key: in the configuration, or --source, say?)", err)
		}
		return s, err
	}
	s, err := cfg.reach(cfg.path(TPMFile))
	if err == nil {
		err = sign.Recall(cfg.State, s)
	}
	if err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	return s, nil
}

func (c Config) path(name string) string { return filepath.Join(c.State, name) }

// reach opens the key of a source that is not a file of the state directory.
func (c Config) reach(blobFile string) (*sign.Signer, error) {
	switch c.Source.Kind {
	case Credential:
		b, err := credential(c.Source.Name)
		if err != nil {
			return nil, err
		}
		s, err := sign.ParsePrivate(b)
		if err != nil {
			return nil, fmt.Errorf("credential %s: %w", c.Source.Name, err)
		}
		return s, nil
	case TPM:
		blob, err := read(blobFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w (probity key init --source %s makes one)", err, c.Source)
		}
		if err != nil {
			return nil, err
		}
		public, err := tpm.PublicOf(blob)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", blobFile, err)
		}
		return sign.NewRemote(public, func() (sign.Key, error) { return tpmKey(tpm.Open(c.Source.Path, blob)) }), nil
	case PKCS11:
		var refused []byte // a PIN that the token did not take
		return sign.Reach(func() (sign.Key, error) {
			cfg, err := c.token()
			if err != nil {
				return nil, err
			}
			if refused != nil && bytes.Equal(refused, cfg.PIN) {
				return nil, fmt.Errorf("%w; it locks itself after a few wrong ones, so this one is not tried again: the next attempt is when another is in %s, or at the next start", pkcs11.ErrPIN, c.Source.URI.PINSource)
			}
			k, err := pkcs11.Open(cfg)
			if errors.Is(err, pkcs11.ErrPIN) {
				refused = cfg.PIN
			}
			return tokenKey(k, err)
		}, c.expected)
	}
	return nil, fmt.Errorf("key source %q is not known", c.Source.Kind)
}

// expected is the key that the source has, as far as the state directory knows: the
// node's own, or the one that a rotation to this source is to; nil if the node has
// none yet.
func (c Config) expected() (*sign.PublicKey, error) {
	now, _, err := Public(c.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := read(c.path(nextFile))
	if errors.Is(err, fs.ErrNotExist) {
		return now, nil
	}
	if err != nil {
		return nil, err
	}
	text, pem, _ := strings.Cut(string(b), "\n")
	if text != c.Source.text {
		return now, nil
	}
	then, err := sign.LoadPublic([]byte(pem))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.path(nextFile), err)
	}
	before, err := follows(c.State, then)
	if err != nil {
		return nil, err
	}
	for _, k := range before {
		if k.KeyID() == now.KeyID() {
			return then, nil
		}
	}
	return now, nil
}

// A nil *Key in an interface would be none.
func tpmKey(k *tpm.Key, err error) (sign.Key, error) {
	if err != nil {
		return nil, err
	}
	return k, nil
}

func tokenKey(k *pkcs11.Key, err error) (sign.Key, error) {
	if err != nil {
		return nil, err
	}
	return k, nil
}

// token is how the helper is started.
func (c Config) token() (pkcs11.Config, error) {
	t := pkcs11.Config{Helper: c.Helper, URI: c.Source.URI}
	source := c.Source.URI.PINSource
	if name, ok := strings.CutPrefix(source, "credential:"); ok {
		dir, err := credentials()
		if err != nil {
			return t, err
		}
		source = filepath.Join(dir, name)
	}
	var err error
	if source != "" {
		if t.PIN, err = pkcs11.ReadPIN(source); err != nil {
			return t, err
		}
	}
	if c.HelperUser != "" {
		if t.User, err = lookUp(c.HelperUser); err != nil {
			return t, fmt.Errorf("the helper's user: %w", err)
		}
	}
	return t, nil
}

func lookUp(name string) (*pkcs11.User, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	var n []uint32
	for _, s := range append([]string{u.Uid, u.Gid}, groups...) {
		id, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return nil, err
		}
		n = append(n, uint32(id))
	}
	return &pkcs11.User{UID: n[0], GID: n[1], Groups: n[2:]}, nil
}

func credentials() (string, error) {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if !filepath.IsAbs(dir) {
		return "", errors.New("no credentials: $CREDENTIALS_DIRECTORY is not set (LoadCredentialEncrypted= in the unit, or systemd-run --pipe -p LoadCredential=...)")
	}
	return dir, nil
}

func credential(name string) ([]byte, error) {
	dir, err := credentials()
	if err != nil {
		return nil, err
	}
	return read(filepath.Join(dir, name))
}

// read reads a small regular file.
func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s: not a regular file", path), err)
	}
	b, err := io.ReadAll(io.LimitReader(f, sign.MaxKeyFile+1))
	if err == nil && len(b) > sign.MaxKeyFile {
		err = fmt.Errorf("%s: more than %d bytes", path, sign.MaxKeyFile)
	}
	return b, err
}

// ErrExists is wrapped by Init where the node has a key.
var ErrExists = errors.New("the node has a key already")

// ErrPIN is wrapped where a token refused the PIN. Tried again a few times, it locks
// itself.
var ErrPIN = pkcs11.ErrPIN

// ErrLocked is wrapped where it has locked itself.
var ErrLocked = pkcs11.ErrLocked

// ErrRunning is wrapped where an agent has the state directory.
var ErrRunning = errors.New("an agent is running")

// Init makes the node's first key. It never overwrites one.
func Init(cfg Config) (_ *sign.Signer, err error) {
	unlock, err := begin(cfg.State)
	if err != nil {
		return nil, fmt.Errorf("init: %w", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	for _, name := range []string{sign.KeyFile, TPMFile, sign.PublicFile, sign.ChainFile} {
		if _, err := os.Lstat(cfg.path(name)); !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(fmt.Errorf("init: %w: %s (probity key rotate puts another in its place)", ErrExists, cfg.path(name)), err)
		}
	}
	if cfg.Source.Kind == File {
		return sign.LoadOrCreate(cfg.State)
	}
	s, err := cfg.create(TPMFile)
	if err != nil {
		return nil, fmt.Errorf("init: %w", err)
	}
	if err := sign.Settle(cfg.State, s); err != nil {
		return nil, errors.Join(fmt.Errorf("init: %w", err), s.Close())
	}
	return s, nil
}

// create makes a key in a source that is not a file, or takes the one that is there
// where the source makes none.
func (c Config) create(blobFile string) (*sign.Signer, error) {
	switch {
	case c.Source.Kind == TPM:
		blob, err := tpm.Create(c.Source.Path)
		if err != nil {
			return nil, err
		}
		if err := sign.Place(c.State, blobFile, blob, 0o600); err != nil {
			return nil, err
		}
	case c.Source.Kind == PKCS11 && !c.Existing:
		t, err := c.token()
		if err != nil {
			return nil, err
		}
		k, err := pkcs11.Generate(t)
		if err != nil {
			return nil, err
		}
		if err := k.Close(); err != nil {
			return nil, err
		}
	}
	s, err := c.reach(c.path(blobFile))
	if err != nil {
		return nil, err
	}
	if err := s.Ready(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// begin makes the state directory and locks it, as the agent does.
func begin(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := sign.Private(dir); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s is locked: stop it first (systemctl stop probity), and start it afterwards", ErrRunning, dir), d.Close())
	}
	return d.Close, nil // closing gives up the lock
}

// Rotate puts another key, in source to, in the place of the one that cfg says, and
// has the old one sign that it follows. It needs the old key, and no agent.
//
// Where both are files, or both in TPMs, the change is made when Rotate returns. Else
// it is made by the agent's first start, or reload, with to as its source: until then
// it goes on with the old one.
//
// What is durable, in order: the new key beside the old one; the succession; the new
// key in the old one's place; node.pub. A crash in between leaves the old key in
// use, or the new one.
func Rotate(cfg Config, to Source) (before, after *sign.PublicKey, err error) {
	fail := func(err error) (*sign.PublicKey, *sign.PublicKey, error) {
		return nil, nil, fmt.Errorf("rotate: %w", err)
	}
	if _, err := os.Lstat(cfg.path(sign.PublicFile)); err != nil {
		return fail(none(err))
	}
	unlock, err := begin(cfg.State)
	if err != nil {
		return fail(err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	old, err := Open(cfg)
	if err != nil {
		return fail(err)
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	next, err := Prepare(cfg, to, old)
	if err != nil {
		return nil, nil, err
	}
	if next.Now() {
		if err := old.Rest(); err != nil {
			return fail(err)
		}
		s, err := next.Take()
		if err != nil {
			return nil, nil, err
		}
		if err := s.Close(); err != nil {
			return fail(err)
		}
	}
	return old.Public(), next.Public(), nil
}

// Next is a key of which the one in use has signed that it follows. It is not in use
// yet.
type Next struct {
	cfg    Config // with the next key's source
	before Source
	file   string
	public *sign.PublicKey
}

// Public is the next key.
func (n *Next) Public() *sign.PublicKey { return n.public }

// Now says that the next key is taken into use by putting it in the old one's place:
// both are files, or both in TPMs. Else the configuration has to say where it is.
func (n *Next) Now() bool { return n.file != "" && n.cfg.Source.Kind == n.before.Kind }

// Prepare makes the next key, or finds it, has it sign something, and has the old one
// sign that it follows. Who calls it holds the state directory. The old key has to
// sign now. When it returns, the new key and the succession are durable, and the old
// key is the node's as before, also where it fails.
func Prepare(cfg Config, to Source, old *sign.Signer) (*Next, error) {
	fail := func(err error) (*Next, error) { return nil, fmt.Errorf("rotate: %w", err) }
	// One at a time: a TPM without a resource manager serves nobody beside.
	if err := errors.Join(old.Ready(), old.Rest()); err != nil {
		return fail(fmt.Errorf("the old key has to sign: %w", err))
	}
	// Nothing would say whom a key follows that has taken its place already.
	if kind := cfg.Source.Kind; kind == File || kind == TPM {
		switch s, err := look(cfg); {
		case errors.Is(err, fs.ErrNotExist): // somebody removed it: the more it is time for another
		case err != nil:
			return fail(err)
		case s.KeyID() != old.KeyID():
			return fail(fmt.Errorf("an earlier rotation was carried out in part: %s is in the place of %s already. start the agent again, which goes on with it then", s.KeyID(), old.KeyID()))
		}
	}
	n := &Next{cfg: cfg, before: cfg.Source}
	n.cfg.Source = to
	s, file, err := n.cfg.successor(cfg.Source.Kind)
	if err != nil {
		return fail(err)
	}
	n.file, n.public = file, s.Public()
	if err := errors.Join(tries(s), s.Close()); err != nil {
		return fail(err)
	}
	if s.KeyID() == old.KeyID() || old.Key(s.KeyID()) != nil {
		return fail(fmt.Errorf("%s is the node's key, or was: another has to follow", s.KeyID()))
	}
	link, err := old.Succeed(s.Public(), evidence.TimeOf(time.Now()))
	if err != nil {
		return fail(err)
	}
	links := append(append([]evidence.Succession{}, old.Successions()...), link)
	if err := sign.WriteChain(cfg.State, links); err != nil {
		return fail(err)
	}
	if to.Kind == PKCS11 {
		if err := n.note(); err != nil {
			return fail(err)
		}
	}
	return n, nil
}

// note writes nextFile.
func (n *Next) note() error {
	if err := os.Remove(n.cfg.path(nextFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // of a rotation that was not carried out
	}
	return sign.Place(n.cfg.State, nextFile, fmt.Appendf(nil, "%s\n%s", n.cfg.Source, n.public.PEM()), 0o644)
}

// tries has a key sign something that nobody asks for: a token may show a key that
// must not sign.
func tries(s *sign.Signer) error {
	if _, err := s.Sign("application/vnd.probity.trial", []byte("this key can sign")); err != nil {
		return fmt.Errorf("the new key does not sign: %w", err)
	}
	return nil
}

// Take makes the next key the node's: its file takes the old one's place, and node.pub
// is its public half. From the first of these steps on the next start has the new key.
func (n *Next) Take() (*sign.Signer, error) {
	if n.Now() {
		if err := sign.Rename(n.cfg.State, n.file+next, n.file); err != nil {
			return nil, fmt.Errorf("rotate: %w", err)
		}
	}
	s, err := Open(n.cfg)
	if err != nil {
		return nil, fmt.Errorf("rotate: %w", err)
	}
	return s, nil
}

// Follow opens the key that a changed configuration names, as the successor of the
// one in use, and makes it the node's. It has to be there, to sign, and to follow;
// otherwise nothing is changed. Who calls it holds the state directory. It returns nil
// where the configuration names the key in use.
func Follow(cfg Config, old *sign.Signer) (*sign.Signer, error) {
	if err := sign.Private(cfg.State); err != nil {
		return nil, fmt.Errorf("node key: %s: %w", cfg.State, err)
	}
	if err := old.Rest(); err != nil { // see Prepare
		return nil, err
	}
	s, err := look(cfg)
	if err != nil {
		return nil, err
	}
	switch err = s.Ready(); {
	case err != nil:
		err = fmt.Errorf("the new key cannot be reached: %w", err)
	case s.KeyID() == old.KeyID():
		return nil, s.Close()
	case s.Key(old.KeyID()) == nil:
		err = fmt.Errorf("nothing says that %s in %s follows the node's key %s (probity key rotate --to ...)", s.KeyID(), cfg.Source, old.KeyID())
	default:
		err = tries(s)
	}
	if err == nil {
		err = sign.Settle(cfg.State, s)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("node key: %w", err), s.Close())
	}
	return s, nil
}

// successor makes the next key. Its file, if it has one, is named as it will be
// called: where a file of that name is the old key, it has next behind it until
// then.
func (c Config) successor(before string) (_ *sign.Signer, file string, err error) {
	switch c.Source.Kind {
	case File:
		file = sign.KeyFile
	case TPM:
		file = TPMFile
	default:
		s, err := c.create("")
		return s, "", err
	}
	name := file
	if c.Source.Kind == before {
		name += next
		// Of a rotation that was not carried out: nothing was signed with it.
		if err := os.Remove(c.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, "", err
		}
	} else if _, err := os.Lstat(c.path(name)); err == nil {
		return nil, "", fmt.Errorf("%s is there already: move it away", c.path(name))
	}
	if c.Source.Kind == File {
		s, err := sign.CreateFile(c.State, name)
		return s, file, err
	}
	s, err := c.create(name)
	return s, file, err
}

// none says what it means that there is no node.pub.
func none(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the node has no key yet (probity key init): %w", err)
	}
	return err
}

// Public is a node's public key, and those that it follows, oldest first, as its state
// directory says: what signs is not asked. The error wraps [fs.ErrNotExist] if it has
// none yet.
func Public(state string) (key *sign.PublicKey, before []*sign.PublicKey, err error) {
	b, err := read(filepath.Join(state, sign.PublicFile))
	if err != nil {
		return nil, nil, none(err)
	}
	if key, err = sign.LoadPublic(b); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", filepath.Join(state, sign.PublicFile), err)
	}
	before, err = follows(state, key)
	return key, before, err
}

// follows are the keys before one, oldest first.
func follows(state string, key *sign.PublicKey) ([]*sign.PublicKey, error) {
	s := sign.NewRemote(key, nil) // it does not sign
	if err := sign.Recall(state, s); err != nil {
		return nil, err
	}
	var before []*sign.PublicKey
	for _, l := range s.Successions() {
		k, _, err := sign.Follow(l)
		if err != nil {
			return nil, err
		}
		before = append(before, k)
	}
	return before, nil
}

// Shown is what a node's key is.
type Shown struct {
	KeyID  string `json:"keyId"`
	Source string `json:"source"`
	// Created is when the key before it signed that it follows; of a node's first key
	// when node.pub was written.
	Created time.Time `json:"created"`
	Public  string    `json:"public"` // PEM
	// Follows are the keys before it, oldest first.
	Follows []string `json:"follows"`
	// Problem is why it cannot sign now.
	Problem string `json:"problem,omitempty"`
}

// Show says what the node's key is. It makes nothing.
func Show(cfg Config) (Shown, *sign.PublicKey, error) {
	st, err := os.Stat(cfg.path(sign.PublicFile))
	if err != nil {
		return Shown{}, nil, none(err)
	}
	s, err := look(cfg)
	if err != nil {
		return Shown{}, nil, err
	}
	defer s.Close()
	out := Shown{KeyID: s.KeyID(), Source: cfg.Source.String(), Created: st.ModTime().UTC(), Public: string(s.Public().PEM()), Follows: []string{}}
	for _, l := range s.Successions() {
		before, _, err := sign.Follow(l)
		if err != nil {
			return Shown{}, nil, err
		}
		out.Follows, out.Created = append(out.Follows, before.KeyID()), l.At.Std()
	}
	if err := s.Ready(); err != nil {
		out.Problem = err.Error()
	}
	return out, s.Public(), nil
}
