package tlog

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// The shape of tiles (C2SP tlog-tiles): 256 hashes, or entries, in each.
const (
	height = 8
	width  = 1 << height
)

// maxEntry is what a length of 16 bits can say.
const maxEntry = 1<<16 - 1

// entries is the level of a bundle's path.
const entries = -1

// tilePath is where a tile of n hashes lies: tile/LEVEL/INDEX, or
// tile/LEVEL/INDEX.p/N for one that is not full. Level -1 is a bundle of entries.
func tilePath(level int, index int64, n int) string {
	name := "entries"
	if level != entries {
		name = strconv.Itoa(level)
	}
	path := fmt.Sprintf("%03d", index%1000)
	for index >= 1000 {
		index /= 1000
		path = fmt.Sprintf("x%03d/", index%1000) + path
	}
	path = "tile/" + name + "/" + path
	if n < width {
		path += ".p/" + strconv.Itoa(n)
	}
	return path
}

// parseTilePath is the inverse of tilePath.
func parseTilePath(path string) (level int, index int64, n int, ok bool) {
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok {
		return 0, 0, 0, false
	}
	name, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, 0, false
	}
	level = entries
	if name != "entries" {
		l, err := strconv.Atoi(name)
		if err != nil || l < 0 || l > 63 {
			return 0, 0, 0, false
		}
		level = l
	}
	n = width
	if full, partial, found := strings.Cut(rest, ".p/"); found {
		w, err := strconv.Atoi(partial)
		if err != nil || w < 1 || w >= width {
			return 0, 0, 0, false
		}
		rest, n = full, w
	}
	for part := range strings.SplitSeq(rest, "/") {
		d, err := strconv.ParseUint(strings.TrimPrefix(part, "x"), 10, 16)
		if err != nil || index > 1<<52 {
			return 0, 0, 0, false
		}
		index = index*1000 + int64(d)
	}
	return level, index, n, tilePath(level, index, n) == path
}

// appendEntry adds one entry to a bundle.
func appendEntry(bundle, entry []byte) []byte {
	return append(binary.BigEndian.AppendUint16(bundle, uint16(len(entry))), entry...)
}

// splitBundle returns a bundle's first w entries, which are parts of it. What lies
// behind them was appended later, and perhaps not to its end.
func splitBundle(bundle []byte, w int) ([][]byte, error) {
	var out [][]byte
	for len(out) < w && len(bundle) > 0 {
		if len(bundle) < 2 {
			return nil, fmt.Errorf("entry %d of the bundle: its length is cut off", len(out))
		}
		n := int(binary.BigEndian.Uint16(bundle))
		if len(bundle)-2 < n {
			return nil, fmt.Errorf("entry %d of the bundle: %d bytes, and %d are left", len(out), n, len(bundle)-2)
		}
		out = append(out, bundle[2:2+n])
		bundle = bundle[2+n:]
	}
	return out, nil
}

// hashes returns the hashes of a tile's data.
func hashes(data []byte) []tlog.Hash {
	out := make([]tlog.Hash, len(data)/tlog.HashSize)
	for i := range out {
		out[i] = tlog.Hash(data[i*tlog.HashSize:])
	}
	return out
}

// rfc6962 is the hash over any number of leaf hashes but none.
func rfc6962(h []Hash) Hash {
	if len(h) == 1 {
		return h[0]
	}
	k := 1
	for k*2 < len(h) {
		k *= 2
	}
	return tlog.NodeHash(rfc6962(h[:k]), rfc6962(h[k:]))
}
