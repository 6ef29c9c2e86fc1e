package agent

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"probity/evidence"
)

// copies is a policy for every file that is a copy of the target, wherever it is.
func copies(t *testing.T) string {
	t.Helper()
	bin, err := target()
	must(t, err)
	f, err := elf.NewFile(bytes.NewReader(bin))
	must(t, err)
	note, err := f.Section(".note.gnu.build-id").Data()
	must(t, err)
	return fmt.Sprintf("name: copies\nprobes:\n  - id: copy\n    type: uprobe\n    buildId: %s\n    symbols: [hello]\n", hex.EncodeToString(note[16:]))
}

// newCopies starts a box that serves, with a directory for more programs, and a
// node that looks for copies of the target.
func newCopies(t *testing.T, cfg Config) (*node, *box) {
	t.Helper()
	n := newNodeWith(t, cfg, copies(t))
	b := newBox(t, 1, "serve")
	must(t, os.Mkdir(filepath.Join(b.dir, "merged/opt"), 0o755))
	n.notify(context.Background(), b.notice("c1"), yes)
	b.run()
	return n, b
}

// wantsNoDenial ends a run in which a copy of the target was executed: no site of
// the probe may say that it was not, unless another says that it was or may have
// been.
func wantsNoDenial(t *testing.T, n *node, b *box) (gaps []*evidence.Gap) {
	t.Helper()
	b.end()
	must(t, n.waitIdle(context.Background()))
	obs, gaps := n.allLines("c1")
	denied := true
	for _, o := range obs {
		denied = denied && (!o.Final || o.State == evidence.ArmedNoHit)
	}
	if denied {
		t.Errorf("a copy ran, and the probe is armedNoHit; gaps: %d", len(gaps))
	}
	return gaps
}

// What was not looked at has no site, and is a gap of the probes all the same.
func TestNotLookedAt(t *testing.T) {
	n, b := newCopies(t, Config{})
	l := n.onlyRun()
	l.checking.Lock() // there is no time for it
	n.unseen(appeared{l: l, path: "/opt/tool", from: l.handle.ArmedAt + 1, why: evidence.GapUnarmedMapping})
	l.checking.Unlock()
	if gaps := wantsNoDenial(t, n, b); len(gaps) == 0 || gaps[0].ProbeID != "copy" || gaps[0].Reason != evidence.GapUnarmedMapping {
		t.Errorf("%+v", gaps)
	}
}
