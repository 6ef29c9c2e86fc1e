package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"probity/evidence"
	"probity/evidence/tlog"
)

// Where a spool keeps its logs (evidence/spool).
const (
	logDir     = "log"
	retiredDir = "retired"
	tmpDir     = "tmp"
)

// What Report.Log says.
const (
	LogNotChecked = "not checked"
	LogSound      = "sound"
	LogUnsound    = "NOT SOUND"
	LogNone       = "none"
	LogProven     = "proven" // the chunks that were named are in it, and of the rest nothing is said
)

// LogReport is what one log in a spool says.
type LogReport struct {
	Origin     string `json:"origin"`
	Leaves     uint64 `json:"leaves"`
	Root       string `json:"root"`
	Chunks     int    `json:"chunks"`     // with a leaf
	Removed    int    `json:"removed"`    // by the node itself, which says so
	Epochs     int    `json:"epochs"`     // of an agent's life, or of a checkpoint key
	Heartbeats int    `json:"heartbeats"` // that stand over the coverage lines that are here
	Unchecked  int    `json:"unchecked"`  // heartbeats over chunks that are not here any more
	// Last is the time of the last leaf: the log says nothing of what came later.
	Last evidence.Time `json:"last,omitzero"`
	// Unclean lists when agents began after one that had not ended in order.
	Unclean []evidence.Time `json:"unclean,omitempty"`
	// Begins is why the log began, where it is not the node's first.
	Begins string            `json:"begins,omitempty"`
	After  *evidence.LogTree `json:"after,omitempty"`
	Closed bool              `json:"closed"` // the last agent stopped in order
	// Witnessed are the states of the log that witnesses who were named have cosigned.
	Witnessed []Witnessed `json:"witnessed,omitempty"`
	// Acknowledged is what consumers say that they have carried away.
	Acknowledged []evidence.Ack `json:"acknowledged,omitempty"`
}

// inLog is what is remembered of a sound chunk for its log.
type inLog struct {
	file    string
	log     string
	leaf    uint64
	digest  string
	size    uint64
	changes []tlog.Change
}

// inLogOf takes what the log says about a chunk, without keeping the chunk.
func (f *fold) inLogOf(c *Chunk) inLog {
	p := inLog{file: c.File, log: f.keep(c.Header.Log), digest: c.digest, size: c.size, changes: c.changes}
	if c.Header.Leaf != nil {
		p.leaf = uint64(*c.Header.Leaf)
	}
	for i := range p.changes {
		p.changes[i].RunID = f.keep(p.changes[i].RunID)
	}
	return p
}

// spool is a spool whose logs are checked: a directory, or a part of an archive.
type spool struct {
	name string
	fsys fs.FS // of the archive; nil for a directory
}

// spools are those in an archive that was read.
func (a *archive) spools() (out []spool) {
	trees := a.side.trees(a.roots)
	for _, root := range slices.Sorted(maps.Keys(a.roots)) {
		out = append(out, spool{a.spool(root), trees[root]})
	}
	return out
}

// mindfulFS is a directory that others may have put anything into.
type mindfulFS struct{ *os.Root }

// Open implements fs.FS. No part of a name may be a link: no spool has one.
func (m mindfulFS) Open(name string) (fs.File, error) {
	for i, c := range name + "/" {
		if c != '/' {
			continue
		}
		if st, err := m.Lstat(name[:i]); err == nil && st.Mode()&fs.ModeSymlink != 0 {
			return nil, &fs.PathError{Op: "open", Path: name[:i], Err: errLink}
		}
	}
	return m.OpenFile(name, os.O_RDONLY|mindful, 0)
}

// ReadDir implements fs.ReadDirFS.
func (m mindfulFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if st, err := m.Lstat(name); err == nil && !st.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errNotDir}
	}
	f, err := m.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := f.(fs.ReadDirFile).ReadDir(-1)
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, err
}

var (
	errLink   = errors.New("a symbolic link, which no spool has")
	errNotDir = errors.New("not a directory")
)

// checkLogs checks the logs of a spool, and its chunks against them. It runs after
// the chunks were read: a chunk is visible only once its log is.
func (s spool) checkLogs(ctx context.Context, crew *crew, before []Finding) (out []LogReport, found []Finding, err error) {
	spool, fsys := s.name, s.fsys
	chunks, key, opts := crew.all.inLog[filepath.Clean(spool)], crew.key, crew.opts
	known := map[string]bool{}
	for _, f := range before {
		known[f.File] = true
	}
	if fsys == nil {
		root, err := os.OpenRoot(spool)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrLook, err)
		}
		defer root.Close()
		fsys = mindfulFS{root}
	}
	dirs := []string{logDir}
	old, err := fs.ReadDir(fsys, retiredDir)
	switch {
	case errors.Is(err, errNotDir):
		found = append(found, Finding{Kind: Misplaced, File: filepath.Join(spool, retiredDir), Reason: err.Error()})
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("%w: %w", ErrLook, err)
	}
	for _, e := range old {
		dirs = append(dirs, path.Join(retiredDir, e.Name()))
	}
	acks, bad, err := acksIn(fsys)
	switch {
	case errors.Is(err, errNotDir):
		found = append(found, Finding{Kind: Misplaced, File: filepath.Join(spool, AckDir), Reason: err.Error()})
	case err != nil:
		return nil, found, fmt.Errorf("%w: %w", ErrLook, err)
	}
	for name, err := range bad {
		found = append(found, Finding{Kind: Malformed, File: filepath.Join(spool, AckDir, name), Reason: err.Error()})
	}
	origins := map[string]bool{}
	tomb := map[grave]bool{}
	var unread []error
	defer func() { err = errors.Join(append(unread, err)...) }()
	// All are proven before the first is compared with the chunks: a later log may say
	// that the node removed a chunk of an earlier one.
	checks := make([]*logCheck, len(dirs))
	for i, dir := range dirs {
		checks[i] = &logCheck{
			spool: spool, dir: dir, archive: s.fsys != nil, fsys: fsys, crew: crew, known: known, chunks: chunks, key: key, kept: opts.Kept, witnesses: opts.Witnesses, acks: acks, tomb: tomb,
		}
		checks[i].bad = checks[i].prove(ctx)
	}
	for i, dir := range dirs {
		c := checks[i]
		rep, err := LogReport{}, c.bad
		if err == nil {
			rep, err = c.check(ctx)
		}
		unread = append(unread, c.unread...)
		switch {
		case errors.Is(err, errNoLog) && dir == logDir:
			continue // said below of each chunk that names a log
		case ctx.Err() != nil:
			return out, found, fmt.Errorf("%w: %w", ErrLook, ctx.Err())
		case err != nil && dir != logDir && rep.Origin == "":
			// The node itself put it aside because it could not be gone on with.
			found = append(found, Finding{Kind: LogDamaged, File: filepath.Join(spool, dir), Reason: fmt.Sprintf("a log that was put aside: %v", err)})
			continue
		case err != nil:
			found = append(found, Finding{Kind: kindOf(err), File: filepath.Join(spool, dir), Reason: err.Error()})
		}
		found = append(found, c.found...)
		if rep.Origin != "" {
			origins[rep.Origin] = true
			out = append(out, rep)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(chunks)) {
		if p := chunks[name]; p.log != "" && !origins[p.log] {
			found = append(found, Finding{Kind: LogMissing, File: p.file, Line: 1, Reason: fmt.Sprintf("it names the log %s, which is not here", p.log)})
		}
	}
	return out, found, nil
}

// kindOf names what is wrong with a log.
func kindOf(err error) Kind {
	if errors.Is(err, errLogKey) {
		return KeyUnknown
	}
	return LogDamaged
}

var (
	errLogKey = errors.New("opened with another key")
	errNoLog  = errors.New("no checkpoint")
)

// grave is a chunk of a log that its node removed itself: where several are trusted,
// none speaks for another.
type grave struct{ node, log, chunk string }

type logCheck struct {
	spool, dir string
	archive    bool // else spool is a directory
	fsys       fs.FS
	crew       *crew
	known      map[string]bool // files of which there is a finding
	unread     []error
	chunks     map[string]inLog
	key        *ring
	kept       []Kept // what somebody kept
	witnesses  []*tlog.Witness
	acks       []evidence.Ack // what consumers say that they saw
	found      []Finding

	// What prove leaves.
	bad    error
	reader *tlog.Reader
	note   []byte
	tree   tlog.Tree
	epochs tlog.Epochs

	rep   LogReport
	node  string // of the epoch that is looked at; "" where one key is trusted
	live  tlog.Live
	blank bool           // a chunk of this epoch is not here: its lines are not known
	tomb  map[grave]bool // of all logs
	leafs map[string]*evidence.ChunkLeaf
}

func (c *logCheck) say(k Kind, file string, format string, args ...any) {
	c.found = append(c.found, Finding{Kind: k, File: file, Reason: fmt.Sprintf(format, args...)})
}

// prove finds out whether the log is what its checkpoint says. Only what is proven
// speaks for chunks that the node removed.
func (c *logCheck) prove(ctx context.Context) error {
	sub, err := fs.Sub(c.fsys, c.dir)
	if err != nil {
		return err
	}
	c.reader = tlog.NewReader(sub)
	c.note, err = c.reader.Checkpoint()
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.Join(errNoLog, err)
	}
	if err != nil {
		return err
	}
	if c.tree, err = tlog.Claim(c.note); err != nil {
		return err
	}
	c.epochs = tlog.Epochs{Origin: c.tree.Origin, NodeKey: c.nodeKey}
	var graves []grave
	if err := c.reader.Scan(ctx, c.tree, func(i uint64, entry []byte) error {
		l, err := c.epochs.See(i, entry)
		if t, ok := l.(*evidence.TombstoneLeaf); ok && err == nil {
			of := t.Log
			if of == "" {
				of = c.tree.Origin
			}
			all := c.epochs.All() // one at least: See has said so
			graves = append(graves, grave{c.nodeOf(all[len(all)-1]), of, t.Chunk})
		}
		return err
	}); err != nil {
		return err
	}
	key, _ := c.epochs.KeyAt(c.tree.Size)
	if _, err := tlog.OpenCheckpoint(c.note, []string{key}, nil); err != nil {
		return err
	}
	for _, g := range graves {
		c.tomb[g] = true
	}
	return nil
}

// check compares a log that is proven with the chunks, and with what somebody kept of
// it. It returns a report with an origin unless it changed meanwhile.
func (c *logCheck) check(ctx context.Context) (LogReport, error) {
	r, tree, note, e := c.reader, c.tree, c.note, &c.epochs
	key, _ := e.KeyAt(tree.Size)
	c.leafs = map[string]*evidence.ChunkLeaf{}
	c.rep = LogReport{
		Origin: tree.Origin, Leaves: tree.Size, Root: tree.Root.String(), Epochs: len(e.All()), Closed: e.Closed(),
	}
	if err := r.Scan(ctx, tree, func(i uint64, entry []byte) error {
		l, err := evidence.DecodeLeaf(string(entry))
		if err != nil {
			return err
		}
		_, c.rep.Last = evidence.PlaceOf(l)
		c.see(l)
		return nil
	}); err != nil {
		return LogReport{}, err // it changed between the two
	}
	c.cosigned(tree, note, []string{key}, "its own checkpoint")
	if err := c.grown(r, tree, e); err != nil {
		return LogReport{}, err
	}
	if len(c.witnesses) > 0 && len(c.rep.Witnessed) == 0 {
		c.say(Unwitnessed, filepath.Join(c.spool, c.dir), "none of the %d witnesses that were named has cosigned a state of it", len(c.witnesses))
	}
	for name, p := range c.chunks {
		_, instance, _ := evidence.ParseChunkName(name)
		switch {
		case c.leafs[name] != nil:
		case p.log == tree.Origin:
			c.say(NotInLog, p.file, "it says that it is leaf %d of %s, and is not in that log", p.leaf, p.log)
		case p.log == "" && strings.HasSuffix(tree.Origin, "/"+instance):
			c.say(NotInLog, p.file, "it names no log, and is not in %s, which is its instance's", tree.Origin)
		}
	}
	return c.rep, nil
}

// grown compares a log with the checkpoints and acknowledgements of it that
// somebody kept.
func (c *logCheck) grown(r *tlog.Reader, tree tlog.Tree, e *tlog.Epochs) error {
	var keys []string
	for _, l := range e.All() {
		keys = append(keys, l.CheckpointKey)
	}
	for _, k := range c.kept {
		if k.Origin != tree.Origin {
			continue
		}
		var was tlog.Tree
		if k.ack != nil {
			var err error
			if was, err = tlog.TreeOf(k.ack.LogTree()); err != nil {
				return err
			}
		} else {
			signed, err := tlog.OpenCheckpoint(k.note, keys, nil)
			if err != nil {
				c.say(RolledBack, filepath.Join(c.spool, c.dir), "%s is not signed by a key that this log has: %v", k.Name, err)
				continue
			}
			was = signed.Tree
		}
		grew, err := c.grownFrom(r, tree, was, k.Name)
		if err != nil {
			return err
		}
		if grew && k.ack == nil {
			c.cosigned(was, k.note, keys, k.Name)
		}
	}
	for _, a := range c.acks {
		if a.Origin != tree.Origin {
			continue
		}
		was, err := tlog.TreeOf(a.LogTree())
		if err != nil {
			return err
		}
		if _, err := c.grownFrom(r, tree, was, "the acknowledgement of "+a.Consumer); err != nil {
			return err
		}
		c.rep.Acknowledged = append(c.rep.Acknowledged, a)
	}
	return nil
}

// grownFrom reports whether a log grew out of a state of it.
func (c *logCheck) grownFrom(r *tlog.Reader, tree, was tlog.Tree, whose string) (bool, error) {
	dir := filepath.Join(c.spool, c.dir)
	if was.Size > tree.Size {
		c.say(RolledBack, dir, "it has %d leaves, and %s is over %d", tree.Size, whose, was.Size)
		return false, nil
	}
	at, err := r.At(tree, was.Size)
	if err != nil {
		return false, err
	}
	if at != was {
		c.say(RolledBack, dir, "its first %d leaves have the root %s, and %s says %s: it has another history", was.Size, at.Root, whose, was.Root)
		return false, nil
	}
	return true, nil
}

// cosigned notes which witnesses vouch for a state of the log that was checked. One
// that did not make the signature that is said to be its own is a finding.
func (c *logCheck) cosigned(tree tlog.Tree, note []byte, keys []string, whose string) {
	if len(c.witnesses) == 0 {
		return
	}
	signed, err := tlog.OpenCheckpoint(note, keys, c.witnesses)
	if err != nil {
		c.say(Unwitnessed, filepath.Join(c.spool, c.dir), "%s: %v", whose, err)
		return
	}
	for _, s := range signed.Cosignatures {
		if s.Time > maxUnix {
			c.say(Unwitnessed, filepath.Join(c.spool, c.dir), "%s: %s cosigned it at second %d, which is no time", whose, s.Witness, s.Time)
			continue
		}
		c.rep.Witnessed = append(c.rep.Witnessed, Witnessed{Witness: s.Witness, At: evidence.TimeOf(time.Unix(int64(s.Time), 0)), Leaves: tree.Size})
	}
}

// Witnessed is a witness's word: at this time it knew this state of the log, and no
// other history of it.
type Witnessed struct {
	Witness string        `json:"witness"`
	At      evidence.Time `json:"at"`
	Leaves  uint64        `json:"leaves"`
}

// maxUnix is the last second that the format can write.
const maxUnix = 253402300799

// maxWitnesses bounds a file of witnesses.
const maxWitnesses = 64

// ParseWitnesses reads the verifier keys of witnesses (C2SP tlog-cosignature), one a
// line. Empty lines, and those that begin with #, say nothing.
func ParseWitnesses(b []byte) (list []*tlog.Witness, err error) {
	seen := map[string]bool{}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		w, err := tlog.NewWitness(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if key := fmt.Sprintf("%s %x", w.Name(), w.KeyHash()); seen[key] {
			return nil, fmt.Errorf("line %d: the witness %s is there twice", n, w.Name())
		} else {
			seen[key] = true
		}
		if list = append(list, w); len(list) > maxWitnesses {
			return nil, fmt.Errorf("more than %d witnesses", maxWitnesses)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("there is no witness in it")
	}
	return list, nil
}

// Kept is a state of a log that somebody kept where the node cannot change it: a
// signed checkpoint, or a consumer's acknowledgement.
type Kept struct {
	Name   string // for findings
	Origin string
	size   uint64
	note   []byte
	ack    *evidence.Ack
}

// ParseKept reads either.
func ParseKept(name string, b []byte) (Kept, error) {
	k := Kept{Name: name, note: b}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		a, err := evidence.ParseAck(b)
		k.ack, k.Origin, k.size = &a, a.Origin, uint64(a.Size)
		return k, err
	}
	k.Origin = tlog.OriginOf(b)
	if len(b) > tlog.MaxCheckpointBytes {
		return k, errors.New("neither a checkpoint nor an acknowledgement")
	}
	t, err := tlog.Claim(b)
	k.size = t.Size
	return k, err
}

func (c *logCheck) nodeKey(l *evidence.EpochLeaf, public, unsigned, sig []byte) error {
	key := c.key.key(l.KeyID)
	if key == nil || string(public) != string(key.DER()) {
		return fmt.Errorf("%w: %s", errLogKey, c.key.unknown(l.KeyID))
	}
	if err := key.Verify(evidence.EpochType, unsigned, sig); err != nil {
		return err
	}
	if err := checkSuccessions(l); err != nil {
		return err
	}
	for _, d := range c.key.doubts(l.KeyID, l.Node, l.At.Std(), holds(c.kept, l.Origin, uint64(l.Index))) {
		c.say(d.kind, filepath.Join(c.spool, c.dir), "leaf %d, an epoch: %s", l.Index, d.why)
	}
	return nil
}

func (c *logCheck) nodeOf(l *evidence.EpochLeaf) string {
	if c.crew.all.byNode {
		return l.Node
	}
	return ""
}

func (c *logCheck) see(l evidence.Leaf) {
	switch l := l.(type) {
	case *evidence.EpochLeaf:
		c.node = c.nodeOf(l)
		switch l.Start {
		case evidence.StartRotation:
			return
		case evidence.StartUnclean:
			c.rep.Unclean = append(c.rep.Unclean, l.At)
		case evidence.StartFirst:
			c.rep.Begins, c.rep.After = l.Reason, l.After
		}
		c.live.Restart()
		c.blank = false
	case *evidence.ChunkLeaf:
		c.chunk(l)
	case *evidence.HeartbeatLeaf:
		if c.blank {
			c.rep.Unchecked++
			return
		}
		if n, root := c.live.Root(); uint64(l.Runs) != n || l.Root != root.String() {
			c.say(Heartbeat, filepath.Join(c.spool, c.dir), "leaf %d, the heartbeat of %s, stands over %d live runs with root %s; the chunks give %d runs with root %s", l.Index, l.At, l.Runs, l.Root, n, root)
			return
		}
		c.rep.Heartbeats++
	}
}

// chunk compares a leaf with the chunk of its name.
func (c *logCheck) chunk(l *evidence.ChunkLeaf) {
	c.rep.Chunks++
	if c.leafs[l.Chunk] != nil {
		c.say(Duplicated, filepath.Join(c.spool, c.dir), "leaf %d is chunk %s, and so is leaf %d", l.Index, l.Chunk, c.leafs[l.Chunk].Index)
		return
	}
	c.leafs[l.Chunk] = l
	p, here := c.chunks[l.Chunk]
	if !here {
		blank := c.blank
		c.blank = true
		if c.tomb[grave{c.node, c.rep.Origin, l.Chunk}] {
			c.rep.Removed++
			return
		}
		if p, here = c.late(l); !here {
			return
		}
		c.blank = blank
	}
	c.found = append(c.found, p.differs(c.rep.Origin, l)...)
	for _, ch := range p.changes {
		c.live.Apply(ch)
	}
}

// late looks for a chunk that was not there when the chunks were listed: it came
// after that, or an agent is about to publish it, or was killed before it could. Its
// bytes decide, and its lines count as any other's: that something is there under its
// name says nothing. One that was looked at and is unsound has its finding.
func (c *logCheck) late(l *evidence.ChunkLeaf) (p inLog, here bool) {
	rel := filepath.FromSlash(evidence.ChunkPath(l.Chunk))
	ready := filepath.Join(c.spool, readyDir, rel)
	if c.archive { // of which every file was looked at
		if _, err := fs.Stat(c.fsys, path.Join(readyDir, evidence.ChunkPath(l.Chunk))); err == nil {
			return p, false
		}
		tmp := path.Join(tmpDir, l.Chunk+".ndjson")
		if b, err := fs.ReadFile(c.fsys, tmp); err == nil {
			p, found, err := c.crew.lateBytes(file{path: c.spool + "/" + tmp, rel: rel, spool: c.spool}, b, l.Chunk, l.Digest)
			c.found = append(c.found, found...)
			if err == nil {
				return p, len(found) == 0
			}
			if !errors.Is(err, errNotChunk) {
				c.unread = append(c.unread, fmt.Errorf("%w: %w", ErrLook, err))
				return p, false
			}
		}
	} else if regular(ready) && c.known[ready] {
		return p, false
	} else {
		for _, at := range []string{ready, filepath.Join(c.spool, tmpDir, l.Chunk+".ndjson"), ready} { // it may move meanwhile
			if _, err := os.Lstat(at); err == nil && !regular(at) {
				continue
			}
			p, found, err := c.crew.late(file{path: at, rel: rel, spool: c.spool}, l.Chunk, l.Digest)
			c.found = append(c.found, found...)
			switch {
			case errors.Is(err, errVanished), errors.Is(err, errNotChunk):
				continue
			case err != nil:
				c.unread = append(c.unread, fmt.Errorf("%w: %w", ErrLook, err))
				return p, false
			}
			return p, len(found) == 0
		}
	}
	c.say(Removed, ready, "leaf %d of %s, of %s, and it is not here: somebody removed it", l.Index, c.rep.Origin, l.At)
	return p, false
}

func regular(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode().IsRegular()
}
