package redact

import (
	"testing"

	"probity/evidence"
)

// What a rule of each kind costs for one entry of a set: nothing matches, which is
// the usual case, and one path does.
func BenchmarkEntry(b *testing.B) {
	r := newRedactor(b)
	for name, path := range map[string]string{"none": "/usr/lib/x86_64-linux-gnu/libcrypto.so.3", "path": "/home/alice/lib/libcrypto.so.3"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, detail := path, ""
				process := evidence.Process{Pid: 1, Comm: "sh"}
				e := evidence.Entry{Access: "read", Device: "0:57", Inode: 7}
				r.Entry(Entry{Path: &p, Detail: &detail, Process: &process, Entry: &e})
			}
		})
	}
}
