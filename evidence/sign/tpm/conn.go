package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// How long one command may take. Making a primary key is the longest; a TPM on a
// slow bus takes a second or two.
var patience = 20 * time.Second

// Bounds of an answer (TPM 2.0 part 1, section 18): a header, and never more than a
// page.
const (
	header    = 10
	maxAnswer = 4096
)

// conn is one connection to a TPM: a character device, or a socket of an emulator.
// It is a transport of go-tpm.
type conn struct {
	rw     io.ReadWriteCloser
	socket bool // a stream: an answer may come in parts

	mu   sync.Mutex
	gone error // after this nothing is asked any more
}

func dial(path string) (*conn, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch st.Mode().Type() {
	case fs.ModeSocket:
		c, err := net.DialTimeout("unix", path, patience)
		if err != nil {
			return nil, err
		}
		return &conn{rw: c, socket: true}, nil
	case fs.ModeDevice | fs.ModeCharDevice:
		// Blocking: with O_NONBLOCK a read before the answer is there gives 0 bytes
		// and no error (drivers/char/tpm/tpm-dev-common.c). os.OpenFile sets that for
		// every device that can be polled, as this one can.
		fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return &conn{rw: os.NewFile(uintptr(fd), path)}, nil
	}
	return nil, fmt.Errorf("%s is neither a character device nor a socket", path)
}

func (c *conn) broken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone != nil
}

// Send implements go-tpm's transport.TPM. A TPM that does not answer in time is
// given up, together with the goroutine that waits for it: no driver lets a command
// be taken back.
func (c *conn) Send(command []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone != nil {
		return nil, c.gone
	}
	type result struct {
		answer []byte
		err    error
	}
	done := make(chan result, 1)
	go func() {
		b, err := c.exchange(command)
		done <- result{b, err}
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case r := <-done:
		if r.err != nil {
			c.gone = r.err
		}
		return r.answer, r.err
	case <-timer.C:
		c.gone = fmt.Errorf("no answer within %v", patience)
		go c.rw.Close() // of a device it waits for the command
		return nil, c.gone
	}
}

func (c *conn) exchange(command []byte) ([]byte, error) {
	if _, err := c.rw.Write(command); err != nil {
		return nil, err
	}
	b := make([]byte, maxAnswer)
	n, err := io.ReadAtLeast(c.rw, b, header)
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	size := binary.BigEndian.Uint32(b[2:])
	if size < header || size > maxAnswer {
		return nil, fmt.Errorf("an answer of %d bytes", size)
	}
	if c.socket && n < int(size) {
		m, err := io.ReadFull(c.rw, b[n:size])
		if err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
		n += m
	}
	if n != int(size) {
		return nil, errors.New("an answer of another length than it says")
	}
	return b[:n], nil
}

// Close ends the connection. It is idempotent.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone != nil {
		c.rw.Close() // it is broken, or was closed
		return nil
	}
	c.gone = errors.New("closed")
	return c.rw.Close()
}
