package evidence

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode/utf8"
)

// maxSpelled is how many bytes of a line one name may take: all that a line says of
// a site besides fits into what path and symbol leave over, so that whoever chose
// them cannot choose that a hit has no line.
const maxSpelled = 8 << 10

// spelledDigest is how many hex digits end a name that is spelled, and spelledRoom how
// many bytes of the line come before them at most.
const (
	spelledDigest = 32
	spelledRoom   = min(maxSpelled/2, MaxPath-1-spelledDigest)
)

// IsCut reports whether a part of a name may be missing in what Spell made of it: then
// nobody knows what is in that part, and the digest is of it too.
func IsCut(spelled string) bool {
	i := strings.LastIndex(spelled, string(utf8.RuneError))
	if i < 0 || len(spelled)-i != len(string(utf8.RuneError))+spelledDigest {
		return false
	}
	const widest = len(`\u0000`) // of a character in the line
	return len(appendText(nil, spelled[:i]))-len(`""`) > spelledRoom-widest
}

// Spell is how a line has a name that a container chose, of a file or a symbol,
// which may be any bytes. One that is not UTF-8, or has U+FFFD in it, or has more
// than 4096 characters, or would take up more than 8 KiB of the line, is cut to half of that and followed by U+FFFD and
// the first 32 hex digits of the SHA-256 of its bytes: two files that are named so that
// only such bytes differ would else be one site, and the later line about the one
// would take back what was said of the other.
func Spell(name string) string {
	if utf8.ValidString(name) && !strings.ContainsRune(name, utf8.RuneError) && utf8.RuneCountInString(name) <= MaxPath &&
		(6*len(name) <= maxSpelled || len(appendText(nil, name)) <= maxSpelled) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	var out strings.Builder
	var one []byte
	room := spelledRoom
	for _, r := range name { // at least one byte each; a byte that is not UTF-8 is U+FFFD
		one = appendText(one[:0], string(r))
		if room -= len(one) - len(`""`); room < 0 {
			break
		}
		out.WriteRune(r)
	}
	return out.String() + string(utf8.RuneError) + hex.EncodeToString(sum[:16])
}
