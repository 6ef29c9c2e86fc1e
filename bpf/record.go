package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tracefsDirs are where tracefs is, newest first.
var tracefsDirs = []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"}

// recordOffset says where a tracepoint's record has a member, in bytes.
func recordOffset(group, event, field string) (uint32, error) {
	for _, dir := range tracefsDirs {
		f, err := os.Open(filepath.Join(dir, "events", group, event, "format"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read the format of its record: %w", err)
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if off, ok := memberOffset(lines.Text(), field); ok {
				return off, nil
			}
		}
		return 0, fmt.Errorf("its record has no member %s", field)
	}
	return 0, errors.New("tracefs has no such event, or is not mounted")
}

// memberOffset reads one line of a format file:
//
//	field:pid_t child_pid;	offset:20;	size:4;	signed:1;
func memberOffset(line, name string) (uint32, bool) {
	parts := strings.Split(strings.TrimSpace(line), ";")
	decl, ok := strings.CutPrefix(parts[0], "field:")
	if !ok || len(parts) < 2 {
		return 0, false
	}
	words := strings.Fields(decl)
	if len(words) == 0 {
		return 0, false
	}
	member, _, _ := strings.Cut(words[len(words)-1], "[")
	off, ok := strings.CutPrefix(strings.TrimSpace(parts[1]), "offset:")
	if !ok || member != name {
		return 0, false
	}
	n, err := strconv.ParseUint(off, 10, 16)
	return uint32(n), err == nil
}
