package lifecycle

// recent remembers the last values that were added. The zero value is empty.
type recent[T comparable] struct {
	ring []T
	next int
	at   map[T]int // where in the ring
}

func (r *recent[T]) has(v T) bool {
	_, ok := r.at[v]
	return ok
}

// add remembers v, and forgets the oldest if there would be more than limit.
func (r *recent[T]) add(v T, limit int) {
	if r.has(v) {
		return
	}
	if r.at == nil {
		r.at = map[T]int{}
	}
	if len(r.ring) < limit {
		r.at[v] = len(r.ring)
		r.ring = append(r.ring, v)
		return
	}
	// The slot may be another's by now, if its own value was dropped.
	if old := r.ring[r.next]; r.at[old] == r.next {
		delete(r.at, old)
	}
	r.ring[r.next] = v
	r.at[v] = r.next
	r.next = (r.next + 1) % limit
}

func (r *recent[T]) drop(v T) { delete(r.at, v) }
