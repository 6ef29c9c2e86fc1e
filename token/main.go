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

	"probity/evidence/sign/pkcs11/wire"
)

func main() {
	if err := drop(); err != nil {
		fmt.Fprintln(os.Stderr, "probity-pkcs11:", err)
		os.Exit(1)
	}
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "probity-pkcs11:", err)
		os.Exit(1)
	}
}

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
