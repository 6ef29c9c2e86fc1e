package evidence

import (
	"fmt"
	"strconv"
	"strings"
)

// Lengths in a chunk's name.
const (
	seqDigits      = 16
	instanceDigits = 16
	fanOutDigits   = 10
)

// MaxSeq is the highest sequence number that a name can carry.
const MaxSeq = 9_999_999_999_999_999

// ChunkName returns SEQ-INSTANCE: 16 decimal digits, so that names sort by age,
// and the 16 hex digits that name one life of a state directory.
func ChunkName(seq uint64, instance string) string {
	return fmt.Sprintf("%0*d-%s", seqDigits, seq, instance)
}

// ParseChunkName takes a name apart. ok is false for anything that ChunkName
// does not write.
func ParseChunkName(name string) (seq uint64, instance string, ok bool) {
	s, instance, found := strings.Cut(name, "-")
	if !found || len(s) != seqDigits || !ValidInstance(instance) {
		return 0, "", false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, "", false
		}
	}
	seq, err := strconv.ParseUint(s, 10, 64)
	return seq, instance, err == nil
}

// ChunkPath returns where a chunk lies below ready/: FIRST-10-DIGITS/NAME.ndjson.
func ChunkPath(name string) string {
	return name[:min(fanOutDigits, len(name))] + "/" + name + ".ndjson"
}

// ValidInstance reports whether s is 16 lower-case hex digits.
func ValidInstance(s string) bool { return isHex(s, instanceDigits) }

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

func isDigest(s string) bool {
	hex, ok := strings.CutPrefix(s, "sha256:")
	return ok && isHex(hex, 64)
}
