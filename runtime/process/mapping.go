package process

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// File is what /proc shows of a mapped file's identity. On an overlay it is the
// overlay's own since Linux 6.8, and the real file's below it before.
type File struct{ Dev, Ino uint64 }

// Mapping is one mapping of a file.
type Mapping struct {
	Start, End uint64 // addresses in the process, [Start, End)
	Offset     uint64 // of Start in the file
	Shared     bool
	Writable   bool
	File       File
	Path       string // in the process's own mount namespace
	Deleted    bool   // the file has no such name any more
}

// maxLine is longer than any line of /proc/PID/maps: its path is one page at
// most, each of whose bytes may be written as four.
const maxLine = 32 << 10

// selector says which mappings are wanted, by their permissions and names.
type selector func(perms, path []byte) bool

func executable(perms, path []byte) bool { return perms[2] == 'x' && isFile(path) }
func private(perms, path []byte) bool    { return perms[3] == 'p' && isFile(path) }

// isFile leaves out anonymous memory and what the kernel names, as the vdso.
func isFile(path []byte) bool { return len(path) > 0 && path[0] == '/' }

// parse reads those of /proc/PID/maps (proc_pid_maps(5)) that are wanted, up to
// limit bytes.
func parse(r io.Reader, limit int, wanted selector) ([]Mapping, error) {
	var out []Mapping
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 4096), maxLine)
	read := 0
	for lines.Scan() {
		line := lines.Bytes()
		if read += len(line) + 1; read > limit {
			return nil, ErrTooMany
		}
		m, ok, err := parseLine(line, wanted)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, m)
		}
	}
	return out, lines.Err()
}

// parseLine reads one line, and reports whether it is a mapping of a file that
// is wanted:
//
//	7f0e7a228000-7f0e7a3bd000 r-xp 00028000 08:01 1835021    /usr/lib/libc.so.6
func parseLine(line []byte, wanted selector) (m Mapping, ok bool, err error) {
	bad := func(what string) (Mapping, bool, error) {
		return Mapping{}, false, fmt.Errorf("a line without %s: %.80q", what, line)
	}
	var fields [5][]byte
	rest := line
	for i := range fields {
		var found bool
		fields[i], rest, found = bytes.Cut(rest, []byte(" "))
		if !found && i < 4 {
			return bad("five fields")
		}
	}
	perms := fields[1]
	if len(perms) != 4 {
		return bad("permissions")
	}
	path := bytes.TrimLeft(rest, " ")
	if !wanted(perms, path) {
		return Mapping{}, false, nil
	}
	lo, hi, ok1 := bytes.Cut(fields[0], []byte("-"))
	major, minor, ok2 := bytes.Cut(fields[3], []byte(":"))
	n := numbers{}
	m = Mapping{
		Start: n.parse(lo, 16), End: n.parse(hi, 16), Offset: n.parse(fields[2], 16),
		Writable: perms[1] == 'w', Shared: perms[3] == 's',
		File: File{Dev: device(n.parse(major, 16), n.parse(minor, 16)), Ino: n.parse(fields[4], 10)},
	}
	if !ok1 || !ok2 || n.err != nil || m.End <= m.Start {
		return bad("addresses, offset, device or inode")
	}
	if isFile(path) && m.File.Ino == 0 {
		return Mapping{}, false, nil
	}
	m.Path, m.Deleted = strings.CutSuffix(strings.ReplaceAll(string(path), `\012`, "\n"), " (deleted)")
	return m, true, nil
}

// device makes of major and minor what stat(2) shows as st_dev.
func device(major, minor uint64) uint64 {
	return minor&0xff | (major&0xfff)<<8 | (minor&^0xff)<<12 | (major&^0xfff)<<32
}

// numbers parses several numbers and remembers what was wrong first.
type numbers struct{ err error }

func (n *numbers) parse(b []byte, base int) uint64 {
	v, err := strconv.ParseUint(string(b), base, 64)
	n.err = errors.Join(n.err, err)
	return v
}
