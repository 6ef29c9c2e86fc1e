package spool

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/evidence/tlog"
)

// Names below the spool's directory.
const (
	LogDir     = "log"     // the node's log: checkpoint and tile/
	retiredDir = "retired" // logs that were lost or came to nothing, by instance
)

// epochLasts is how long one checkpoint key is used.
const epochLasts = 24 * time.Hour

// book is the spool's log, and the epoch that this process writes in it.
//
// Invariant: once a checkpoint over a chunk's leaf is durable, the chunk's bytes
// are what the leaf says, in tmp/ or in ready/; and a chunk is in ready/ only once
// such a checkpoint is.
//
// The whole log is read once, at the start. After an error it is opened again at
// the checkpoint that the disk has: at the last one that is known to be durable
// (sure), or at the one that the commit that failed tried to write (tried). Any
// other means that somebody else was there, and all of it is read again.
type book struct {
	cfg   *Config
	state *state
	log   *tlog.Log // nil before it was opened, and after an error
	live  tlog.Live // as the chunks in this epoch say

	sure  standing  // as of the last durable checkpoint
	tried standing  // as of the commit that failed
	gone  *tlog.Log // whose commit that was

	key    *tlog.Key // signs this epoch; nil before it began
	began  time.Time // when, for its rotation
	next   *tlog.Key // of an epoch whose leaf is not known to be durable
	fresh  bool      // next is no rotation: it begins an epoch without live runs
	epochs uint64    // in the log
	closed bool      // the log's last leaf is a close
	opener string    // key id of who opened the log's last epoch

	after tlog.Tree // what the log that begins follows, and why it begins
	why   string

	// watch, if set, says which chunks somebody asks about: known are those of
	// them that are in the log. What a process appends itself it knows.
	watch func(chunk string) bool
	known map[string]Item
	added map[string]Item // appended since the last commit
	last  ending          // as found at the start
}

// standing is what the book says of a state of the log.
type standing struct {
	tree   tlog.Tree
	epochs uint64
	closed bool
	opener string
}

func (b *book) standing(t tlog.Tree) standing {
	return standing{tree: t, epochs: b.epochs, closed: b.closed, opener: b.opener}
}

// ending is how the log that was found ends.
type ending struct {
	at     evidence.Time // of the last leaf; zero if there is none
	bootID string        // of the last epoch
	closed bool
	top    uint64 // the highest number that a chunk of the log's instance has
}

// errLogLost is wrapped where the log cannot be gone on with: a new one begins,
// and says why.
var errLogLost = errors.New("the log is lost")

// passes reports whether an error says something of this machine at this moment,
// and nothing of the log: it is there, and is read when there is room again. A
// disk that cannot give it back is none: then it is lost.
func passes(err error) bool {
	return slices.ContainsFunc([]error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR, unix.EAGAIN, unix.ETIMEDOUT}, func(no error) bool { return errors.Is(err, no) })
}

func (b *book) dir() string { return filepath.Join(b.cfg.Dir, LogDir) }

func (b *book) origin() string { return evidence.Origin(b.cfg.Node, b.state.instance) }

// open reads the log that is there, or begins one. Whatever the log cannot prove
// of itself to the node's own key, or to the last checkpoint that this node
// remembers, makes a new log begin.
func (b *book) open(ctx context.Context) error {
	if b.log != nil {
		return nil
	}
	if done, err := b.resume(); done || err != nil {
		return err
	}
	err := b.read(ctx)
	if errors.Is(err, errLogLost) {
		b.cfg.Log.Error("the node's log cannot be gone on with: a new one begins", "log", b.origin(), "error", err)
		return b.startOver(err.Error())
	}
	return err
}

// absent says that there is no log, nor was one that somebody could have read.
func (b *book) absent() bool {
	if b.settle(context.Background()) != nil {
		return false
	}
	_, err := os.Lstat(filepath.Join(b.dir(), tlog.CheckpointFile))
	return errors.Is(err, fs.ErrNotExist)
}

// resume opens the log again after an error, without reading all of it: its right
// edge proves the checkpoint, and what that one is over was read or written before.
func (b *book) resume() (done bool, err error) {
	if b.sure.tree.Origin == "" || b.sure.tree.Origin != b.origin() {
		return false, nil
	}
	log, err := tlog.Open(b.dir(), b.origin())
	if errors.Is(err, tlog.ErrDamaged) && !passes(err) {
		return false, nil // it is read again, and lost
	}
	if err != nil {
		return false, err
	}
	switch log.Checkpointed() {
	case b.sure.tree:
		// Before its chunks are placed again: a crash must not bring it back.
		if err := tlog.Discard(b.dir()); err != nil {
			return false, err
		}
		b.epochs, b.closed, b.opener, b.next = b.sure.epochs, b.sure.closed, b.sure.opener, nil
		b.log, b.gone, b.added = log, nil, nil
		return true, nil
	case b.tried.tree:
		if b.gone == nil {
			return false, nil
		}
		// It is visible, and not known to be durable.
		if err := b.gone.Again(); err != nil {
			return false, err
		}
		b.epochs, b.closed, b.opener, b.log, b.gone = b.tried.epochs, b.tried.closed, b.tried.opener, b.gone, nil
		b.committed()
		return true, nil
	}
	return false, nil
}

// forget lets go of the log after an error: what was appended and not committed
// did not happen.
func (b *book) forget() {
	if b.log != nil {
		b.log, b.gone = nil, nil
	}
}

// settle decides about a checkpoint that has not its name yet. One of an earlier boot
// that the log proves may have had it, and somebody may have read it: the log goes on
// from there. In the same boot no rename was lost, so it never had.
func (b *book) settle(ctx context.Context) error {
	note, err := tlog.Next(b.dir())
	if err != nil || note == nil {
		return err
	}
	took, err := b.proves(ctx, note)
	switch {
	case err != nil:
		return err
	case took:
		err = tlog.Take(b.dir())
	default:
		err = tlog.Discard(b.dir())
	}
	if err != nil {
		return fmt.Errorf("settle the next checkpoint: %w", err)
	}
	b.cfg.Log.Info("found a checkpoint without its name", "log", b.origin(), "taken", took)
	return nil
}

// proves says whether this log's tiles and keys give a checkpoint of an earlier boot,
// and whether it is later than the one that the log has. An error means that this cannot be said now.
func (b *book) proves(ctx context.Context, note []byte) (bool, error) {
	tree, err := tlog.Claim(note)
	if err != nil || tree.Origin != b.origin() {
		return false, nil // torn, or of another log
	}
	has := tlog.Tree{Origin: tree.Origin}
	now, err := tlog.NewReader(os.DirFS(b.dir())).Checkpoint()
	if err == nil {
		if has, err = tlog.Claim(now); err != nil || has.Origin != tree.Origin {
			return false, nil // the log is damaged, and read will say so
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if tree.Size <= has.Size {
		return false, nil
	}
	e := tlog.Epochs{Origin: b.origin(), NodeKey: b.ownKey}
	b.known = map[string]Item{}
	err = b.audit(ctx, tree, has, note, &e)
	earlier := b.last.bootID != b.cfg.BootID
	b.known, b.last = nil, ending{}
	var disk *fs.PathError
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case errors.As(err, &disk) && !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	return err == nil && earlier, nil
}

func (b *book) read(ctx context.Context) error {
	if err := b.settle(ctx); err != nil {
		return err
	}
	log, err := tlog.Open(b.dir(), b.origin())
	if errors.Is(err, tlog.ErrDamaged) && !passes(err) {
		return fmt.Errorf("%w: %w", errLogLost, err)
	}
	if err != nil {
		return err
	}
	tree, known := log.Checkpointed(), b.state.tree
	if known.Origin != tree.Origin {
		known = tlog.Tree{} // of an earlier instance
	}
	if tree.Size < known.Size {
		return fmt.Errorf("%w: it has %d leaves, and %d were written: it was rolled back or removed", errLogLost, tree.Size, known.Size)
	}
	e := tlog.Epochs{Origin: b.origin(), NodeKey: b.ownKey}
	b.known, b.last = map[string]Item{}, ending{}
	if tree.Size > 0 {
		note, err := tlog.NewReader(os.DirFS(b.dir())).Checkpoint()
		if err == nil {
			err = b.audit(ctx, tree, known, note, &e)
		}
		if err != nil {
			b.known, b.last = nil, ending{}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if passes(err) {
				return fmt.Errorf("read the log: %w", err)
			}
			return fmt.Errorf("%w: %w", errLogLost, err)
		}
	}
	// The key in memory is the log's if its epoch is the last in it.
	key, _ := e.KeyAt(tree.Size)
	switch {
	case b.next != nil && b.next.Verifier() == key:
		b.took()
	case b.key != nil && b.key.Verifier() != key:
		b.key = nil
	}
	b.next = nil
	b.log, b.gone, b.added, b.epochs, b.closed = log, nil, nil, uint64(len(e.All())), e.Closed()
	b.opener = ""
	if n := len(e.All()); n > 0 {
		b.opener = strings.Clone(e.All()[n-1].KeyID)
	}
	b.sure = b.standing(tree)
	return nil
}

// audit reads the whole log, as note says that it is.
func (b *book) audit(ctx context.Context, tree, known tlog.Tree, note []byte, e *tlog.Epochs) error {
	r := tlog.NewReader(os.DirFS(b.dir()))
	if err := r.Scan(ctx, tree, func(i uint64, entry []byte) error {
		l, err := e.See(i, entry)
		if err != nil {
			return err
		}
		_, b.last.at = evidence.PlaceOf(l)
		if c, ok := l.(*evidence.ChunkLeaf); ok {
			seq, _, _ := evidence.ParseChunkName(c.Chunk)
			b.last.top = max(b.last.top, seq)
			_, mine := b.added[c.Chunk]
			if mine || b.watch != nil && b.watch(c.Chunk) {
				it := b.item(c)
				b.known[it.Chunk] = it
			}
		}
		return nil
	}); err != nil {
		return err
	}
	b.last.closed = e.Closed()
	if all := e.All(); len(all) > 0 {
		b.last.bootID = strings.Clone(all[len(all)-1].BootID)
	}
	key, _ := e.KeyAt(tree.Size)
	if _, err := tlog.OpenCheckpoint(note, []string{key}, nil); err != nil {
		return err
	}
	if known.Size == 0 {
		return nil
	}
	at, err := r.At(tree, known.Size)
	if err != nil {
		return err
	}
	if at != known {
		return fmt.Errorf("its first %d leaves are not those that were written", known.Size)
	}
	return nil
}

// item is a chunk of this log.
func (b *book) item(l *evidence.ChunkLeaf) Item {
	name := strings.Clone(l.Chunk)
	return Item{
		Origin: b.origin(), Leaf: l.Index, Chunk: name, Digest: strings.Clone(l.Digest), Bytes: l.Bytes,
		Path: filepath.Join(b.cfg.Dir, ReadyDir, filepath.FromSlash(evidence.ChunkPath(name))),
	}
}

// took makes the key of an epoch that is durable the one that signs.
func (b *book) took() {
	b.key, b.began, b.next = b.next, time.Now(), nil
	if b.fresh {
		b.live.Restart()
	}
}

// ownKey says whether an epoch was opened by this node.
func (b *book) ownKey(l *evidence.EpochLeaf, public, unsigned, sig []byte) error {
	own := b.cfg.Signer.Key(l.KeyID) // or one that it follows
	if own == nil || string(public) != string(own.DER()) {
		return fmt.Errorf("an epoch opened with key %.64s, which is neither %s nor one before it", l.KeyID, b.cfg.Signer.KeyID())
	}
	return own.Verify(evidence.EpochType, unsigned, sig)
}

// successions says how the node's key came to be this one, where the log's readers
// do not know it: in a log's first epoch, and in the first with this key.
func (b *book) successions() []evidence.Succession {
	links := b.cfg.Signer.Successions()
	if b.opener == b.cfg.Signer.KeyID() {
		return nil
	}
	return links[max(0, len(links)-evidence.MaxSuccessions):]
}

// startOver begins a log of another name. What is left of the old one is kept
// beside it: it may be somebody's evidence.
func (b *book) startOver(why string) error {
	last := b.state.tree
	if last.Size == 0 {
		last = b.claimed()
	}
	b.log, b.gone, b.sure = nil, nil, standing{}
	if err := b.state.renew(); err != nil {
		return err
	}
	if _, err := os.Lstat(b.dir()); err == nil {
		keep := filepath.Join(b.cfg.Dir, retiredDir)
		if err := os.MkdirAll(keep, 0o750); err != nil {
			return err
		}
		if err := os.Rename(b.dir(), filepath.Join(keep, "before-"+b.state.instance)); err != nil {
			return err
		}
		if err := errors.Join(syncPath(keep), syncPath(b.cfg.Dir)); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	log, err := tlog.Open(b.dir(), b.origin())
	if err != nil {
		return err
	}
	b.log, b.key, b.next, b.added, b.epochs, b.closed, b.opener, b.known = log, nil, nil, nil, 0, false, "", nil
	b.after, b.why = last, why
	b.sure = b.standing(log.Checkpointed())
	return nil
}

// claimed is what the checkpoint of a log that cannot be gone on with says.
func (b *book) claimed() tlog.Tree {
	note, err := tlog.NewReader(os.DirFS(b.dir())).Checkpoint()
	if err != nil {
		return tlog.Tree{}
	}
	t, err := tlog.Claim(note)
	if err != nil {
		return tlog.Tree{}
	}
	return t
}

// begin appends what has to come before any other leaf: the epoch of this
// process, or the next one where its key is worn, or the node's is another one.
func (b *book) begin(at evidence.Time) error {
	start := evidence.StartRotation
	switch {
	case b.log.Size() == 0:
		start = evidence.StartFirst
	case b.key == nil && b.closed:
		start = evidence.StartClean
	case b.key == nil:
		start = evidence.StartUnclean
	case b.opener == b.cfg.Signer.KeyID() && time.Since(b.began) < epochLasts:
		return nil
	}
	key, err := tlog.NewKey(b.origin())
	if err != nil {
		return err
	}
	own := b.cfg.Signer.Public()
	l := &evidence.EpochLeaf{
		Index: evidence.Uint64(b.log.Size()), At: at, Format: evidence.LogFormat, Epoch: evidence.Uint64(b.epochs), Start: start,
		Origin: b.origin(), Node: b.cfg.Node, BootID: b.cfg.BootID, Agent: b.cfg.Agent,
		KeyID: own.KeyID(), PublicKey: base64.StdEncoding.EncodeToString(own.DER()), CheckpointKey: key.Verifier(),
	}
	if start == evidence.StartFirst {
		l.Reason = clipRunes(b.why, evidence.MaxText)
		if b.after.Size > 0 {
			after := b.after.Named()
			l.After = &after
		}
	}
	if l.Successions = b.successions(); len(l.Successions) > 0 {
		l.Format = evidence.LogFormat2
	}
	unsigned, err := l.Unsigned()
	if err != nil {
		return err
	}
	sig, err := b.cfg.Signer.Sign(evidence.EpochType, unsigned)
	if err != nil {
		return err
	}
	l.Signature = base64.StdEncoding.EncodeToString(sig)
	if start == evidence.StartRotation {
		l.Announced = base64.StdEncoding.EncodeToString(b.key.Announce(unsigned))
	}
	if err := b.append(l, at); err != nil {
		return err
	}
	b.next, b.fresh, b.closed = key, start != evidence.StartRotation, false
	b.epochs++
	b.opener = own.KeyID()
	return nil
}

func (b *book) append(l evidence.Leaf, at evidence.Time) error {
	entry, err := evidence.EncodeLeaf(l, b.log.Size(), at)
	if err != nil {
		return err
	}
	if _, err = b.log.Append(entry); err != nil {
		return err
	}
	if c, ok := l.(*evidence.ChunkLeaf); ok {
		if b.added == nil {
			b.added = map[string]Item{}
		}
		b.added[c.Chunk] = b.item(c)
	}
	return nil
}

// commit makes what was appended durable. After an error the log is opened again
// from the disk: what a failed fsync left in memory is not relied on.
func (b *book) commit() error {
	key := b.key
	if b.next != nil {
		key = b.next
	}
	if err := b.log.Commit(key.Sign); err != nil {
		log := b.log
		b.forget()
		if t, ok := log.Tried(); ok {
			b.gone, b.tried = log, b.standing(t)
		}
		return err
	}
	b.added = nil
	b.committed()
	return nil
}

// committed takes what a commit made durable.
func (b *book) committed() {
	if b.next != nil {
		b.took()
	}
	b.sure = b.standing(b.log.Checkpointed())
	b.state.remember(b.log.Checkpointed())
}

// has returns the chunk of this name if it is known to be in the log.
func (b *book) has(chunk string) (Item, bool) {
	if it, ok := b.added[chunk]; ok && b.log != nil && b.sure.tree.Size > uint64(it.Leaf) {
		return it, true // of a commit that was thought to have failed
	}
	it, ok := b.known[chunk]
	return it, ok
}

// see follows a chunk that is in the log.
func (b *book) see(c *chunk) {
	for line := range bytes.SplitSeq(bytes.TrimSuffix(c.body[c.head:], []byte("\n")), []byte("\n")) {
		if !bytes.HasPrefix(line, []byte(`{"kind":"coverage"`)) && !bytes.HasPrefix(line, []byte(`{"kind":"gap"`)) {
			continue
		}
		if l, err := evidence.Decode(string(line)); err == nil { // we wrote it
			b.live.See(l, line)
		}
	}
}

// beat appends a heartbeat and makes it durable.
func (b *book) beat(at evidence.Time) error {
	if err := b.begin(at); err != nil {
		return err
	}
	if b.next != nil && b.fresh {
		b.live.Restart() // it is the first of its epoch
	}
	runs, root := b.live.Root()
	if err := b.append(&evidence.HeartbeatLeaf{Runs: evidence.Uint64(runs), Root: root.String()}, at); err != nil {
		return err
	}
	return b.commit()
}

// rekey makes the epoch of another key of the node's durable, unless the log has none
// yet that it could go on from.
func (b *book) rekey(at evidence.Time) error {
	if b.key == nil {
		return nil
	}
	if err := b.begin(at); err != nil {
		return err
	}
	return b.commit()
}

// close ends the epoch in order.
func (b *book) close(at evidence.Time) error {
	if b.log == nil || b.key == nil || b.closed {
		return nil
	}
	if err := b.append(&evidence.CloseLeaf{}, at); err != nil {
		return err
	}
	b.closed = true
	return b.commit()
}

func clipRunes(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most])
	}
	return s
}
