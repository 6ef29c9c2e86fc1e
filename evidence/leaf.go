package evidence

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"unicode"
)

// The versions of the leaves of a node's log: an epoch says the second exactly if
// it has successions, so that a reader of the first does not read past them.
const (
	LogFormat  = "probity-log/1"
	LogFormat2 = "probity-log/2"
)

// EpochType is the DSSE payload type under which an epoch leaf is signed.
const EpochType = "application/vnd.probity.epoch+json"

// MaxLeafBytes bounds a leaf. An entry bundle of the log could carry 65,535
// bytes; a bundle of 256 leaves is kept in memory.
const MaxLeafBytes = 8 << 10

// The kinds of leaf.
const (
	LeafEpoch     = "epoch"
	LeafChunk     = "chunk"
	LeafGap       = "gap"
	LeafHeartbeat = "heartbeat"
	LeafTombstone = "tombstone"
	LeafClose     = "close"
)

// How an epoch begins.
const (
	StartFirst    = "first"    // the first leaf of a log
	StartClean    = "clean"    // after a close leaf
	StartUnclean  = "unclean"  // after an end without one: the last checkpoint key died unused
	StartRotation = "rotation" // announced under the checkpoint key before it
)

// Why a chunk has a tombstone.
const (
	TombstoneAcknowledged = "acknowledged" // every consumer had taken it
	TombstoneQuota        = "quota"        // the spool's quota needed the room, and somebody had not
)

// Starts and TombstoneReasons list what their members may say.
var (
	Starts           = []string{StartFirst, StartClean, StartUnclean, StartRotation}
	TombstoneReasons = []string{TombstoneAcknowledged, TombstoneQuota}
)

// Origin is the name of a node's log: the checkpoints' first line, and the name
// of the keys that sign them. A character of the node's name that such a name
// cannot hold is escaped as in a URL.
func Origin(node, instance string) string {
	unsafe := func(r rune) bool { return r == '+' || unicode.IsSpace(r) || unicode.IsControl(r) }
	if strings.ContainsFunc(node, unsafe) {
		node = strings.ReplaceAll(url.PathEscape(node), "+", "%2B")
	}
	return node + "/probity/" + instance
}

// Leaf is one leaf of a node's log: *EpochLeaf, *ChunkLeaf, *GapLeaf,
// *HeartbeatLeaf, *TombstoneLeaf or *CloseLeaf.
type Leaf interface {
	place() leafHead
}

// leafHead points to how every leaf begins.
type leafHead struct {
	kind  *string
	index *Uint64
	at    *Time
}

// LogTree is a state of a log: the first Size leaves, and the RFC 6962 hash over
// them in base64.
type LogTree struct {
	Origin string `json:"origin"`
	Size   Uint64 `json:"size"`
	Root   string `json:"root"`
}

// EpochLeaf opens an epoch: it names the key that signs checkpoints from here on,
// and the node's key signs it.
type EpochLeaf struct {
	Leaf          string   `json:"leaf"`
	Index         Uint64   `json:"index"`
	At            Time     `json:"at"`
	Format        string   `json:"format"`
	Epoch         Uint64   `json:"epoch"` // from 0
	Start         string   `json:"start"` // first, clean, unclean, rotation
	Origin        string   `json:"origin"`
	Node          string   `json:"node"`
	BootID        string   `json:"bootId"`
	Agent         string   `json:"agent"`
	KeyID         string   `json:"keyId"`         // of the node's key
	PublicKey     string   `json:"publicKey"`     // the node's key: SubjectPublicKeyInfo, base64
	CheckpointKey string   `json:"checkpointKey"` // verifier key of a signed note
	After         *LogTree `json:"after,omitempty"`
	Reason        string   `json:"reason,omitempty"` // for a person: why a new log began
	// Successions say how the node's key came to follow those before it, oldest
	// first.
	Successions []Succession `json:"successions,omitempty"`
	Announced   string       `json:"announced,omitempty"` // signature by the checkpoint key before, base64; exactly on rotation
	Signature   string       `json:"signature,omitempty"` // by the node's key, DER, base64
}

// ChunkLeaf is a chunk: what it is called and what its bytes are.
type ChunkLeaf struct {
	Leaf   string `json:"leaf"`
	Index  Uint64 `json:"index"`
	At     Time   `json:"at"`
	Chunk  string `json:"chunk"`
	Digest string `json:"digest"` // of the whole file, envelope included
	Bytes  Uint64 `json:"bytes"`  // of the whole file
}

// GapLeaf records a loss before a chunk can: that of the lines of chunks that the
// node removes, under one checkpoint with their tombstones.
type GapLeaf struct {
	Leaf   string    `json:"leaf"`
	Index  Uint64    `json:"index"`
	At     Time      `json:"at"`
	Reason GapReason `json:"reason"`
	From   Time      `json:"from"`
	To     Time      `json:"to,omitzero"`
	Count  Loss      `json:"count"` // lines
	Detail string    `json:"detail,omitempty"`
}

// HeartbeatLeaf says that at this moment all that is live is covered as its
// latest lines say: Root is the RFC 6962 hash over the live runs (FORMAT.md,
// "Heartbeat").
type HeartbeatLeaf struct {
	Leaf  string `json:"leaf"`
	Index Uint64 `json:"index"`
	At    Time   `json:"at"`
	Runs  Uint64 `json:"runs"`
	Root  string `json:"root"` // base64
}

// TombstoneLeaf says that the node itself removes a chunk.
type TombstoneLeaf struct {
	Leaf   string `json:"leaf"`
	Index  Uint64 `json:"index"`
	At     Time   `json:"at"`
	Chunk  string `json:"chunk"`
	Log    string `json:"log,omitempty"` // the log that the chunk is in, if not this one
	Of     Uint64 `json:"of"`            // the chunk's leaf
	Reason string `json:"reason"`
}

// CloseLeaf is the last leaf of an agent that stopped in order.
type CloseLeaf struct {
	Leaf  string `json:"leaf"`
	Index Uint64 `json:"index"`
	At    Time   `json:"at"`
}

func (l *EpochLeaf) place() leafHead     { return leafHead{&l.Leaf, &l.Index, &l.At} }
func (l *ChunkLeaf) place() leafHead     { return leafHead{&l.Leaf, &l.Index, &l.At} }
func (l *GapLeaf) place() leafHead       { return leafHead{&l.Leaf, &l.Index, &l.At} }
func (l *HeartbeatLeaf) place() leafHead { return leafHead{&l.Leaf, &l.Index, &l.At} }
func (l *TombstoneLeaf) place() leafHead { return leafHead{&l.Leaf, &l.Index, &l.At} }
func (l *CloseLeaf) place() leafHead     { return leafHead{&l.Leaf, &l.Index, &l.At} }

// PlaceOf returns a leaf's index and its time.
func PlaceOf(l Leaf) (index uint64, at Time) {
	h := l.place()
	return uint64(*h.index), *h.at
}

// leafKinds says what each kind is read into.
var leafKinds = []struct {
	kind  string
	shape *shape
	make  func() Leaf
}{
	{LeafChunk, shapeOf(reflect.TypeFor[ChunkLeaf]()), func() Leaf { return new(ChunkLeaf) }},
	{LeafHeartbeat, shapeOf(reflect.TypeFor[HeartbeatLeaf]()), func() Leaf { return new(HeartbeatLeaf) }},
	{LeafTombstone, shapeOf(reflect.TypeFor[TombstoneLeaf]()), func() Leaf { return new(TombstoneLeaf) }},
	{LeafEpoch, shapeOf(reflect.TypeFor[EpochLeaf]()), func() Leaf { return new(EpochLeaf) }},
	{LeafGap, shapeOf(reflect.TypeFor[GapLeaf]()), func() Leaf { return new(GapLeaf) }},
	{LeafClose, shapeOf(reflect.TypeFor[CloseLeaf]()), func() Leaf { return new(CloseLeaf) }},
}

func kindOfLeaf(l Leaf) (string, *shape) {
	for _, k := range leafKinds {
		if k.shape.typ == reflect.TypeOf(l).Elem() {
			return k.kind, k.shape
		}
	}
	panic(fmt.Sprintf("evidence: %T is no leaf", l))
}

// EncodeLeaf returns the canonical bytes of a leaf at this place: the log's
// entry. They follow the rules of a line's.
func EncodeLeaf(l Leaf, index uint64, at Time) ([]byte, error) {
	kind, sh := kindOfLeaf(l)
	h := l.place()
	*h.kind, *h.index, *h.at = kind, Uint64(index), at
	w := writer{}
	w.value(sh, reflect.ValueOf(l).Elem())
	if w.err != nil {
		return nil, fmt.Errorf("encode %s leaf: %w", kind, w.err)
	}
	if err := validateLeaf(l); err != nil {
		return nil, fmt.Errorf("encode %s leaf: %w", kind, err)
	}
	if len(w.b) > MaxLeafBytes {
		return nil, fmt.Errorf("encode %s leaf: %d bytes, at most %d are allowed", kind, len(w.b), MaxLeafBytes)
	}
	return w.b, nil
}

// DecodeLeaf reads an entry of a node's log. It takes exactly what EncodeLeaf
// writes.
func DecodeLeaf(entry string) (Leaf, error) {
	if len(entry) > MaxLeafBytes {
		return nil, fmt.Errorf("%d bytes, a leaf has at most %d", len(entry), MaxLeafBytes)
	}
	for _, k := range leafKinds {
		if !strings.HasPrefix(entry, `{"leaf":"`+k.kind+`"`) {
			continue
		}
		l := k.make()
		if err := decodeCanonical(entry, k.shape, reflect.ValueOf(l).Elem()); err != nil {
			return nil, explain(entry, k.make(), err)
		}
		if err := validateLeaf(l); err != nil {
			return nil, err
		}
		return l, nil
	}
	var claim struct{ Leaf *string }
	switch err := json.Unmarshal([]byte(entry), &claim); {
	case err != nil:
		return nil, fmt.Errorf("not a JSON object: %w", err)
	case claim.Leaf == nil:
		return nil, errors.New("the entry has no leaf")
	}
	return nil, fmt.Errorf("the leaf %q is not known, or not in canonical form", clip(*claim.Leaf))
}

// Unsigned returns the bytes that are signed: the leaf without its signatures.
func (l *EpochLeaf) Unsigned() ([]byte, error) {
	bare := *l
	bare.Announced, bare.Signature, bare.Leaf = "", "", LeafEpoch
	w := writer{}
	_, sh := kindOfLeaf(&bare)
	w.value(sh, reflect.ValueOf(&bare).Elem())
	return w.b, w.err
}

func validateLeaf(l Leaf) error {
	if h := l.place(); h.at.IsZero() {
		return errors.New("at: missing")
	}
	switch v := l.(type) {
	case *EpochLeaf:
		return v.validate()
	case *ChunkLeaf:
		if !isDigest(v.Digest) {
			return bad("digest", v.Digest)
		}
		if v.Bytes == 0 || v.Bytes > MaxChunkBytes {
			return fmt.Errorf("bytes: %d, a chunk has 1 to %d", v.Bytes, MaxChunkBytes)
		}
		return chunkName(v.Chunk)
	case *GapLeaf:
		if v.From.IsZero() || !v.To.IsZero() && v.To.t.Before(v.From.t) {
			return errors.New("from, to: missing, or the wrong way round")
		}
		return firstOf(gapReason(v.Reason), optional("detail", v.Detail, MaxText))
	case *HeartbeatLeaf:
		return hash("root", v.Root)
	case *TombstoneLeaf:
		if v.Log == "" && v.Of >= v.Index {
			return fmt.Errorf("of: %d, a tombstone comes after the chunk's leaf", v.Of)
		}
		return firstOf(chunkName(v.Chunk), optional("log", v.Log, 2*MaxText), oneOf("reason", v.Reason, TombstoneReasons))
	}
	return nil
}

func (l *EpochLeaf) validate() error {
	if err := firstOf(
		oneOf("start", l.Start, Starts), text("origin", l.Origin, 2*MaxText), text("node", l.Node, MaxText), text("bootId", l.BootID, MaxID),
		text("agent", l.Agent, MaxText), text("checkpointKey", l.CheckpointKey, 3*MaxText), optional("reason", l.Reason, MaxText),
		spelled("publicKey", l.PublicKey), spelled("signature", l.Signature),
	); err != nil {
		return err
	}
	if l.Format != LogFormat && l.Format != LogFormat2 {
		return fmt.Errorf("format: %q is not known to this reader, which knows %s and %s", clip(l.Format), LogFormat, LogFormat2)
	}
	if (l.Format == LogFormat2) != (len(l.Successions) > 0) {
		return fmt.Errorf("successions: there exactly where format is %s", LogFormat2)
	}
	if err := followOn(l.Successions, l.PublicKey); err != nil {
		return fmt.Errorf("successions: %w", err)
	}
	if l.Announced != "" {
		if err := spelled("announced", l.Announced); err != nil {
			return err
		}
	}
	if a := l.After; a != nil {
		if err := firstOf(text("after.origin", a.Origin, 2*MaxText), hash("after.root", a.Root)); err != nil {
			return err
		}
	}
	switch first := l.Start == StartFirst; {
	case first != (l.Index == 0):
		return fmt.Errorf("start: %s at index %d", l.Start, l.Index)
	case first != (l.Epoch == 0):
		return fmt.Errorf("epoch: %d, but it starts %s", l.Epoch, l.Start)
	case (l.Start == StartRotation) != (l.Announced != ""):
		return fmt.Errorf("announced: there exactly where start is %s", StartRotation)
	case !first && (l.After != nil || l.Reason != ""):
		return errors.New("after, reason: only the first leaf of a log has them")
	}
	return nil
}

func chunkName(name string) error {
	if _, _, ok := ParseChunkName(name); !ok {
		return fmt.Errorf("chunk: %q is not 16 digits, '-' and 16 hex digits", clip(name))
	}
	return nil
}

// hash checks a SHA-256 in base64.
func hash(member, v string) error {
	b, err := base64.StdEncoding.Strict().DecodeString(v)
	if err != nil || len(b) != 32 || base64.StdEncoding.EncodeToString(b) != v {
		return fmt.Errorf("%s: %q is not 32 bytes in base64", member, clip(v))
	}
	return nil
}

// spelled checks that a text is base64 in its one spelling.
func spelled(member, v string) error {
	b, err := base64.StdEncoding.Strict().DecodeString(v)
	if err != nil || len(b) == 0 || len(v) > 1<<10 || base64.StdEncoding.EncodeToString(b) != v {
		return fmt.Errorf("%s: %q is not base64", member, clip(v))
	}
	return nil
}
