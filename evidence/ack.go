package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
)

// MaxAckBytes bounds an acknowledgement.
const MaxAckBytes = 8 << 10

// Ack is what one consumer of a spool says: it has every chunk whose leaf in this
// log is below Size, and knows that the log had this root then. Kept elsewhere, it
// is what a later rollback of the log shows against.
type Ack struct {
	Consumer string `json:"consumer"`
	Origin   string `json:"origin"`
	Size     Uint64 `json:"size"`
	Root     string `json:"root"` // base64
	At       Time   `json:"at"`
}

// LogTree is the state of the log that the consumer saw.
func (a Ack) LogTree() LogTree { return LogTree{Origin: a.Origin, Size: a.Size, Root: a.Root} }

var consumers = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// ValidConsumer reports whether a consumer may be called so: lower-case letters,
// digits, '.', '_' and '-', at most 64. It is part of a file's name.
func ValidConsumer(name string) bool { return consumers.MatchString(name) }

// ParseAck reads an acknowledgement, which anybody may have written: JSON in any
// spelling, all of the members and no others.
func ParseAck(b []byte) (Ack, error) {
	var a Ack
	if len(b) > MaxAckBytes {
		return a, fmt.Errorf("more than %d bytes", MaxAckBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil {
		return a, fmt.Errorf("not an acknowledgement: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return a, errors.New("not an acknowledgement: something follows it")
	}
	// encoding/json takes a member's name in any case.
	var members map[string]json.RawMessage
	if err := json.Unmarshal(b, &members); err != nil {
		return a, fmt.Errorf("not an acknowledgement: %w", err)
	}
	if len(members) != 5 {
		return a, fmt.Errorf("not an acknowledgement: %d members, want 5", len(members))
	}
	for _, name := range []string{"consumer", "origin", "size", "root", "at"} {
		if _, ok := members[name]; !ok {
			return a, fmt.Errorf("not an acknowledgement: it has no %s", name)
		}
	}
	if !ValidConsumer(a.Consumer) {
		return a, fmt.Errorf("consumer: %q is no name of one", clip(a.Consumer))
	}
	return a, firstOf(text("origin", a.Origin, 2*MaxText), hash("root", a.Root))
}
