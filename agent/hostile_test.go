package agent

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"probity/evidence"
	"probity/tests/need"
)

const hostilePolicy = `name: test
probes:
  - {id: many, type: uprobe, file: /many/*/*, symbols: [hello]}
  - {id: billion, type: uprobe, file: /bin/billion, symbols: [hello]}
  - {id: silent, type: uprobe, file: /silent/**, symbols: [hello]}
  - {id: hello, type: uprobe, file: /bin/target, symbols: [hello]}
`

// An image with 100,000 files that match, with an ELF file of a billion symbols,
// and a FUSE mount whose server never answers: the container's start is held no
// longer than the barrier, nothing is claimed of what could not be looked at, and
// the start of a neighbour is not delayed.
func TestHostileImage(t *testing.T) {
	need.Root(t)
	need.Command(t, "gcc")
	bin, err := target()
	must(t, err)
	n := newNodeWith(t, Config{Barrier: 1200 * time.Millisecond}, hostilePolicy)
	hostile := newBoxWith(t, map[string][]byte{"bin/target": bin}, func(dir string) {
		lower := filepath.Join(dir, "lower")
		must(t, os.WriteFile(lower+"/bin/billion", billionSymbols(), 0o755))
		must(t, os.Truncate(lower+"/bin/billion", 25<<30)) // nothing is stored of it
		for d := range 10 {
			many := fmt.Sprintf("%s/many/%d", lower, d)
			must(t, os.MkdirAll(many, 0o755))
			must(t, os.WriteFile(many+"/0", bin, 0o755))
			for i := range 9999 {
				must(t, os.Link(many+"/0", fmt.Sprintf("%s/%d", many, i+1)))
			}
		}
		must(t, os.Mkdir(dir+"/merged/silent", 0o755))
		need.DeadFUSE(t, dir+"/merged/silent")
	}, 1, "hello")
	neighbour := newBox(t, 1, "hello")

	var wg sync.WaitGroup
	for id, b := range map[string]*box{"hostile": hostile, "neighbour": neighbour} {
		wg.Go(func() {
			began := time.Now()
			n.notify(context.Background(), b.notice(id), yes)
			// As long again for a machine that has no time; looking at it all takes
			// a minute, and the mount for ever.
			if took := time.Since(began); took > 2*n.cfg.Barrier {
				t.Errorf("%s: held for %v, the barrier is %v", id, took, n.cfg.Barrier)
			} else {
				t.Logf("%s: held for %v", id, took)
			}
		})
	}
	wg.Wait()
	for _, b := range []*box{hostile, neighbour} {
		b.run()
		b.end()
	}
	must(t, n.waitIdle(context.Background()))
	n.stop()
	last := map[string]*evidence.Observation{}
	seen, _ := n.allLines("hostile")
	many := 0
	for _, o := range seen {
		last[o.ProbeID] = o
		if o.ProbeID == "many" && o.Final {
			many++
		}
	}
	if many == 0 || many > 10_000 {
		t.Errorf("%d lines of the many files", many)
	}
	for id, want := range map[string]evidence.NotArmedReason{"billion": evidence.FileUnreadable, "silent": evidence.FileNotFound} {
		if o := last[id]; o == nil || o.Reason != want || o.Detail == "" {
			t.Errorf("%s: %+v, want the reason %s", id, o, want)
		}
	}
	obs, gaps := n.lines("neighbour")
	if o := obs["hello"]; o == nil || o.State != evidence.Hit || *o.Count != 1 || !o.Complete {
		t.Errorf("the neighbour: %+v, gaps %+v", o, gaps)
	}
}

// billionSymbols is the beginning of an ELF file whose section headers promise so
// many.
func billionSymbols() []byte {
	le := binary.LittleEndian
	b := make([]byte, 64+3*64)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 3)  // ET_DYN
	le.PutUint16(b[18:], 62) // EM_X86_64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[40:], 64) // e_shoff
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	symbols, names := b[128:], b[192:]
	le.PutUint32(symbols[4:], 2) // SHT_SYMTAB
	le.PutUint64(symbols[24:], 4096)
	le.PutUint64(symbols[32:], 24_000_000_000)
	le.PutUint32(symbols[40:], 2)
	le.PutUint64(symbols[56:], 24)
	le.PutUint32(names[4:], 3) // SHT_STRTAB
	le.PutUint64(names[24:], 24_000_004_096)
	le.PutUint64(names[32:], 1<<20)
	return b
}
