package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"probity/agent"
	"probity/evidence/spool"
	"probity/evidence/verify"
)

const (
	spoolName = "spool"

	// littleSpace is what the agent needs free for a minute of bad luck: two chunks
	// of 8 MiB, what is ahead of them, the log.
	littleSpace = 64 << 20

	// lateAck is how old the oldest chunk that a consumer has not acknowledged may be.
	lateAck = time.Hour
)

// checkSpool looks at what is stored, what it may become, and who carries it away.
func checkSpool(ctx context.Context, cfg agent.Config) []check {
	found := func(status, what, advice string) []check {
		return []check{{spoolName, status, what, cfg.Spool, advice}}
	}
	root, err := os.OpenRoot(cfg.Spool)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return found(checkSkip, "none yet: the agent makes it at its first start", "")
	case err != nil:
		return found(checkUnknown, err.Error(), asRoot)
	}
	defer root.Close()
	var dir unix.Stat_t
	var disk unix.Statfs_t
	if err := errors.Join(unix.Stat(cfg.Spool, &dir), unix.Statfs(cfg.Spool, &disk)); err != nil {
		return found(checkUnknown, err.Error(), asRoot)
	}
	if dir.Uid != 0 || dir.Mode&0o002 != 0 {
		return found(checkFail, fmt.Sprintf("others than root may remove evidence (mode %04o, user %d)", dir.Mode&0o7777, dir.Uid),
			fmt.Sprintf("chown root %[1]s && chmod o-w %[1]s", quote(cfg.Spool)))
	}
	held, err := measure(ctx, root)
	if err != nil {
		return found(checkUnknown, err.Error(), asRoot)
	}
	all := []check{judgeSpace(cfg, held, int64(disk.Bavail)*disk.Bsize)}
	acks, bad, err := verify.Acks(root)
	if err != nil {
		return append(all, check{spoolName, checkUnknown, err.Error(), filepath.Join(cfg.Spool, spool.AckDir), asRoot})
	}
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		all = append(all, check{spoolName, checkWarn, "no acknowledgement, and so it holds nothing: " + bad[name].Error(), filepath.Join(cfg.Spool, spool.AckDir, name), "have its shipper write it anew, or remove it"})
	}
	for _, a := range acks[:min(len(acks), maxDaemons)] {
		all = append(all, checkConsumer(ctx, cfg.Spool, root, a.Consumer))
	}
	return all
}

// held is what is in a spool.
type held struct {
	chunks int
	bytes  int64
}

func measure(ctx context.Context, root *os.Root) (h held, err error) {
	err = fs.WalkDir(root.FS(), spool.ReadyDir, func(name string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || !d.Type().IsRegular() || !strings.HasSuffix(name, ".ndjson") {
			return err
		}
		st, err := d.Info()
		if err == nil {
			h.chunks, h.bytes = h.chunks+1, h.bytes+st.Size()
		}
		return gone(err) // collected meanwhile
	})
	return h, gone(err)
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// judgeSpace says whether the disk is full before the quota is.
func judgeSpace(cfg agent.Config, h held, free int64) check {
	what := fmt.Sprintf("%s in %d chunks, %s free on the disk", mib(h.bytes), h.chunks, mib(free))
	quota := cfg.SpoolQuotaMiB << 20
	found := func(status, why, advice string) check {
		return check{spoolName, status, what + why, cfg.Spool, advice}
	}
	switch {
	case free < littleSpace:
		return found(checkFail, ": evidence is dropped when it is full, which is signed", "make room on that file system, or probity evidence gc")
	case quota > 0 && free < quota-h.bytes:
		return found(checkWarn, fmt.Sprintf(": it is full before the quota of %s is", mib(quota)), "make room there, or lower spoolQuotaMiB in the configuration")
	case quota > 0:
		return found(checkOK, ", quota "+mib(quota), "")
	}
	return found(checkOK, ", no quota", "")
}

// checkConsumer looks at how far behind a shipper is.
func checkConsumer(ctx context.Context, dir string, root *os.Root, consumer string) check {
	found := func(status, what, advice string) check {
		return check{spoolName, status, "consumer " + consumer + ": " + what, dir, advice}
	}
	r, err := spool.NewReader(dir, consumer)
	var items []spool.Item
	if err == nil {
		items, err = r.Pending(ctx)
	}
	if err != nil {
		return found(checkWarn, err.Error(), "probity evidence pending "+quote(dir)+" --consumer "+consumer)
	}
	if len(items) == 0 {
		return found(checkOK, "has acknowledged everything", "")
	}
	rel, err := filepath.Rel(dir, items[0].Path)
	if err != nil {
		rel = items[0].Path
	}
	st, err := root.Stat(rel)
	if err != nil {
		return found(checkUnknown, err.Error(), "look again")
	}
	what := fmt.Sprintf("%d chunks are not acknowledged, the oldest of %s", len(items), st.ModTime().UTC().Format(time.RFC3339))
	if age := time.Since(st.ModTime()); age > lateAck {
		return found(checkWarn, what, "look at that shipper; past the quota the oldest chunks go, acknowledged or not")
	}
	return found(checkOK, what, "")
}
