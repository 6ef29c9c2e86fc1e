// Command power is the first and only process of a virtual machine whose power is
// cut: it mounts the disk, starts on the spool there as the agent does, and then
// appends lines for ever and says on the console what it was told is durable, and
// which checkpoint of the log anybody could read.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/spool"
	"probity/evidence/tlog"
	"probity/tests/kernels/guest"
)

const (
	device = "/dev/vda"
	state  = "/disk/probity"
)

func main() {
	if err := run(); err != nil {
		tell(guest.Line{Kind: guest.Fail, Text: err.Error()})
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

var telling sync.Mutex

func tell(l guest.Line) {
	b, err := json.Marshal(l)
	if err != nil {
		panic(err) // it is strings and numbers
	}
	telling.Lock()
	defer telling.Unlock()
	fmt.Printf("\n%s%s\n", guest.Mark, b)
}

func say(format string, args ...any) {
	tell(guest.Line{Kind: guest.Out, Step: guest.Power, Text: fmt.Sprintf(format, args...)})
}

func run() error {
	for kind, dir := range map[string]string{"devtmpfs": "/dev", "proc": "/proc"} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), ignoreBusy(unix.Mount(kind, dir, kind, 0, ""))); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	tell(guest.Line{Kind: guest.Up, Release: unix.ByteSliceToString(u.Release[:])})
	if err := errors.Join(load("/modules/virtio_blk.ko"), os.MkdirAll("/disk", 0o755)); err != nil {
		return err
	}
	// The disk is probed beside us, and nothing here announces it.
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Mount(device, "/disk", "ext4", 0, "errors=panic")
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || time.Since(began) > time.Minute {
			return fmt.Errorf("mount %s: %w", device, err)
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	from := 0
	if text, err := os.ReadFile("/from"); err != nil {
		return err
	} else if _, err := fmt.Sscan(string(text), &from); err != nil {
		return err
	}
	return write(strings.TrimSpace(string(boot)), from)
}

func load(module string) error {
	f, err := os.Open(module)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return fmt.Errorf("load %s: %w", module, err)
	}
	return nil
}

func ignoreBusy(err error) error {
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

func now() evidence.Clock {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // there is such a clock
	}
	return evidence.Clock{BootNs: evidence.Uint64(t.Nano()), Wall: evidence.TimeOf(time.Now())}
}

// write does all that an agent does with its spool, in the state directory and with
// the times of the product, and never returns but with an error.
func write(boot string, from int) error {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	signer, err := sign.LoadOrCreate(state)
	if err != nil {
		return err
	}
	say("key %s", base64.StdEncoding.EncodeToString(signer.Public().PEM()))
	dir := filepath.Join(state, "spool")
	sp, err := spool.Open(spool.Config{
		Dir: dir, State: state, Node: "node-a", BootID: boot, Agent: "probity test", Signer: signer, Clock: now,
		Heartbeat: 300 * time.Millisecond, Log: slog.New(slog.NewTextHandler(logged{}, nil)),
	})
	if err != nil {
		return err
	}
	ctx := context.Background()
	go func() {
		tell(guest.Line{Kind: guest.Fail, Text: fmt.Sprint(sp.Run(ctx))})
	}()
	if _, err := spool.Recover(context.Background(), dir, signer, nil); err != nil {
		return err
	}
	if since, lost := sp.PowerLoss(); lost {
		err := sp.Append("", func(c evidence.Clock) []redact.Line {
			to := c.Wall
			if to.Std().Before(since.Std()) {
				to = since
			}
			return noRules.Lines(&evidence.Gap{
				GapID: "powerLoss-" + boot, Scope: evidence.ScopeNode, Reason: evidence.GapPowerLoss, From: since, To: to, Count: evidence.Loss{Unknowable: true},
			})
		})
		if err = errors.Join(err, sp.Flush(ctx)); err != nil {
			return err
		}
		say("lost %s", boot)
	}
	go carry(dir)
	for i := from; ; i++ {
		err := sp.Append(guest.PowerRun(i), lines(boot, i))
		switch {
		case err != nil:
		case i%4 == 0:
			err = sp.Flush(ctx)
		case i%4 == 1:
			sp.Seal() // it is published while the next one is appended
			err = sp.Sync()
		default:
			err = sp.Sync()
		}
		if err != nil {
			return err
		}
		say("durable %d", i)
	}
}

// noRules redacts nothing.
var noRules *redact.Redactor

// lines are some of a run: as many as its number says.
func lines(boot string, run int) func(evidence.Clock) []redact.Line {
	return func(c evidence.Clock) (out []redact.Line) {
		for i := range guest.PowerLines(run) {
			off, zero := evidence.Uint64(i), evidence.Uint64(0)
			out = append(out, noRules.Line(&evidence.Observation{
				State: evidence.ArmedNoHit, ProbeType: evidence.Uprobe, RequestedProbeType: evidence.Uprobe, RunID: guest.PowerRun(run), ContainerID: fmt.Sprintf("container-%d", run),
				Runtime: "podman", ImageDigestReason: "no image", ProbeID: "p", Offset: &off, Path: "/" + strings.Repeat("x", 50+run%5*500), Detail: "no digest in this test", Count: &zero,
				Confidence: evidence.Confidence{Version: "test", Inputs: evidence.Inputs{ProbeType: "uprobe", Attribution: "cgroup", Symbol: "offset", Losses: "none"}},
				Complete:   true, From: c.Time(int64(c.BootNs) - 100), To: c.Time(int64(c.BootNs)),
			}))
		}
		return out
	}
}

// carry says each checkpoint that it can read, as a shipper would carry it away.
func carry(dir string) {
	r := tlog.NewReader(os.DirFS(filepath.Join(dir, spool.LogDir)))
	var last []byte
	for ; ; time.Sleep(time.Millisecond) {
		b, err := r.Checkpoint()
		if err != nil || bytes.Equal(b, last) {
			continue
		}
		last = b
		say("checkpoint %s", base64.StdEncoding.EncodeToString(b))
	}
}

// logged says what the spool logs.
type logged struct{}

func (logged) Write(b []byte) (int, error) {
	lines := bufio.NewReader(bytes.NewReader(b))
	for {
		text, err := lines.ReadString('\n')
		if text != "" {
			say("log %s", strings.TrimSpace(text))
		}
		if errors.Is(err, io.EOF) {
			return len(b), nil
		}
	}
}
