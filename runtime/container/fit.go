package container

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Text returns the first of the texts that is not empty and within the bounds of a
// name, or "".
func Text(ss ...string) string {
	for _, s := range ss {
		if s != "" && len(s) <= MaxName && utf8.ValidString(s) {
			return s
		}
	}
	return ""
}

// Fit returns m if it is within the bounds of labels and annotations, else the shortest
// of its pairs that are, and how many were left out. Nobody gets out of sight by giving
// themselves many labels.
func Fit(m map[string]string) (map[string]string, int) {
	size := 0
	for k, v := range m {
		size += len(k) + len(v)
	}
	if len(m) == 0 {
		return nil, 0
	}
	if len(m) <= MaxPairs && size <= MaxPairsBytes {
		return m, 0
	}
	length := func(k string) int { return len(k) + len(m[k]) }
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(length(a), length(b)), strings.Compare(a, b))
	})
	kept, size := map[string]string{}, 0
	for _, k := range keys {
		if size += length(k); len(kept) == MaxPairs || size > MaxPairsBytes {
			break
		}
		kept[k] = m[k]
	}
	return kept, len(m) - len(kept)
}
