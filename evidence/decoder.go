package evidence

import "strings"

// Decoder reads the lines of a chunk one after another. It takes exactly what
// Decode takes, with the same results and the same errors, and is several times as
// fast where lines repeat one another: most of what an observation says is what
// the one before it in the same state said, byte for byte, and what is the same
// bytes in the same place is the same member. FuzzDecoder holds the two against
// each other. The zero value is ready to use.
type Decoder struct {
	before [4]previous // observations, one in each state
	blocks [][]Observation
	used   int // of all blocks
}

// previous is an observation and the bytes of each of its members, with the comma
// or brace in front; empty where the member is absent.
type previous struct {
	Observation
	bytes [len(members)]string
}

const blockLen = 64 // observations that are allocated together

// Reset lets the decoder use again what it returned so far, which must not be
// looked at any more.
func (d *Decoder) Reset() {
	d.used = 0
	for i := range d.before {
		d.before[i] = previous{} // it would keep a chunk's text
	}
}

// Decode reads one line between header and envelope, like the function Decode. Lines
// may share what they point to, so the result must not be changed.
func (d *Decoder) Decode(line string) (Line, error) {
	const begins = `{"kind":"` + KindObservation + `","state":"`
	if len(line) >= MaxLineBytes || len(line) == len(begins) || !strings.HasPrefix(line, begins) {
		return Decode(line)
	}
	b := &d.before[0]
	switch line[len(begins)] { // which of them only decides how fast it is
	case 'a':
		b = &d.before[1]
	case 'p':
		b = &d.before[2]
	case 'n':
		b = &d.before[3]
	}
	if !b.read(line) {
		*b = previous{}
		return Decode(line)
	}
	o := d.next()
	*o = b.Observation
	return o, nil
}

// read reports whether it read all of s over what was there before.
func (b *previous) read(s string) bool {
	q := &quick{reader: reader{s: s}}
	for m := 0; m < len(members); {
		next := m // that was there
		for next < len(members)-1 && b.bytes[next] == "" {
			next++
		}
		if same := b.bytes[next]; same != "" && strings.HasPrefix(s[q.i:], same) {
			q.i += len(same)
			q.some = true
			m = next + 1 // those between were absent, and are
			continue
		}
		for ; m <= next; m++ {
			at := q.i
			members[m](q, &b.Observation)
			if q.bad {
				return false
			}
			b.bytes[m] = s[at:q.i]
		}
	}
	return q.end()
}

// next is room for an observation.
func (d *Decoder) next() *Observation {
	block, i := d.used/blockLen, d.used%blockLen
	if block == len(d.blocks) {
		d.blocks = append(d.blocks, make([]Observation, blockLen))
	}
	d.used++
	return &d.blocks[block][i]
}
