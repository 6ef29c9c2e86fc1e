// Command probity-pkcs11 is the agent's helper for keys on PKCS#11 tokens: it loads
// a token's module, which the agent, being static, cannot.
//
// In: frames on standard input ([wire]): which key, with its PIN, and digests. Out:
// the public key and signatures on standard output. It ends when its input does.
//
// It gives up all capabilities, and the way back to them, before the module is
// loaded. What it trusts is the module: a bad one has the PIN. It is not a control:
// who can talk to it can have anything signed, and only its parent can.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"probity/evidence/sign/pkcs11/wire"
)

func main() {
	if err := drop(); err != nil {
		fmt.Fprintln(os.Stderr, "probity-pkcs11:", err)
		os.Exit(1)
	}
	in, out, err := private()
	if err == nil {
		err = run(in, out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probity-pkcs11:", err)
		os.Exit(1)
	}
}

// private keeps the frames away from the module, which may write to its standard
// output, or ask somebody at its standard input: the first goes where errors go, and
// the second has nothing to say.
func private() (in, out *os.File, err error) {
	var fds [2]int
	for i := range fds {
		if fds[i], err = unix.FcntlInt(uintptr(i), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return nil, nil, fmt.Errorf("take the frames aside: %w", err)
		}
	}
	nothing, err := os.Open(os.DevNull)
	if err == nil {
		err = errors.Join(unix.Dup3(int(nothing.Fd()), 0, 0), unix.Dup3(2, 1, 0), nothing.Close())
	}
	if err != nil {
		return nil, nil, fmt.Errorf("take the frames aside: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "requests"), os.NewFile(uintptr(fds[1]), "answers"), nil
}

// errPIN is wrapped where the token did not take the PIN, errLocked where it takes none.
var (
	errPIN    = errors.New("log in to the token")
	errLocked = errors.New("the token's PIN is locked: its security officer has to set it again")
)

// session is an open key.
type session interface {
	sign(digest []byte) ([]byte, error)
	close()
}

// run answers requests until there are none. Requests are read beside the work: the
// end of the input ends the process, also where the module hangs.
func run(in io.Reader, out io.Writer) error {
	type request struct {
		op   byte
		body []byte
		err  error
	}
	requests := make(chan request)
	go func() {
		for {
			op, body, err := wire.Read(in)
			if errors.Is(err, io.EOF) {
				os.Exit(0) // the parent is gone, or wants nothing more
			}
			requests <- request{op, body, err}
		}
	}()
	var s session
	for r := range requests {
		if r.err != nil {
			return r.err
		}
		answer, err := []byte(nil), error(nil)
		switch {
		case r.op == wire.OpOpen && s == nil:
			s, answer, err = openKey(r.body)
		case r.op == wire.OpSign && s != nil:
			answer, err = s.sign(r.body)
		default:
			return fmt.Errorf("request %q out of turn", r.op)
		}
		kind := wire.Done
		if err != nil {
			text := err.Error()
			kind, answer = wire.Failed, []byte(text[:min(len(text), 1024)])
			switch {
			case errors.Is(err, errPIN):
				kind = wire.Refused
			case errors.Is(err, errLocked):
				kind = wire.Locked
			}
		}
		if err := wire.Write(out, kind, answer); err != nil {
			return err
		}
	}
	return nil
}

func openKey(body []byte) (session, []byte, error) {
	o, err := wire.ParseOpen(body)
	clear(body)
	if err != nil {
		return nil, nil, err
	}
	s, der, err := open(o)
	clear(o.PIN)
	if err != nil {
		return nil, nil, err // not a nil session in an interface
	}
	return s, der, nil
}
