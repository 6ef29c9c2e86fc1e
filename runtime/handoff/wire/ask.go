package wire

import (
	"syscall"
	"time"
	"unicode/utf8"
)

// Question is one request of the hook.
type Question struct {
	Path    string // of the socket
	Stage   Stage
	State   []byte        // more than MaxBody bytes are not sent, only said
	Connect time.Duration // bound on connecting
	Answer  time.Duration // bound on sending and being answered
}

// Answer is what the agent said.
type Answer struct {
	Verdict byte
	Message string
	Uid     uint32 // of who listens, as the kernel says (SO_PEERCRED)
}

// An Error says what was being done when Err came.
type Error struct {
	Doing string
	Err   error
}

func (e *Error) Error() string { return e.Doing + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Ask sends q and waits for the answer. It returns within q.Connect + q.Answer, or
// some milliseconds more.
// The errors wrap ErrAbsent, ErrTimeout, ErrProtocol or an errno.
func Ask(q Question) (Answer, error) {
	if len(q.Path) == 0 || len(q.Path) > maxPathBytes {
		return Answer{}, &Error{"connect to the agent", syscall.ENAMETOOLONG}
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return Answer{}, &Error{"connect to the agent", err}
	}
	defer syscall.Close(fd)
	c := conn{fd: fd, end: time.Now().Add(q.Connect)}
	if err := c.connect(q.Path); err != nil {
		return Answer{}, &Error{"connect to the agent", err}
	}
	c.end = time.Now().Add(q.Answer)
	peer, err := syscall.GetsockoptUcred(fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		return Answer{}, &Error{"look who listens", err}
	}

	body := q.State
	size := len(body)
	if size > MaxBody {
		body, size = nil, TooLong
	}
	request := append(AppendHeader(make([]byte, 0, HeaderBytes+len(body)), q.Stage, size), body...)
	if err := c.write(request); err != nil {
		return Answer{}, &Error{"send the container's state", err}
	}
	var head [AnswerBytes]byte
	if err := c.read(head[:]); err != nil {
		return Answer{}, &Error{"wait for the agent", err}
	}
	verdict, n, err := parseAnswer(head)
	if err != nil {
		return Answer{}, &Error{"read the answer", err}
	}
	message := make([]byte, n)
	if err := c.read(message); err != nil {
		return Answer{}, &Error{"read the answer", err}
	}
	if !utf8.Valid(message) {
		return Answer{}, &Error{"read the answer", ErrProtocol}
	}
	return Answer{Verdict: verdict, Message: string(message), Uid: peer.Uid}, nil
}

// conn is a blocking socket whose calls end at a common deadline: before each
// one the rest of the time becomes the socket's timeout, so that a peer that
// sends a byte at a time gains nothing. One call of each kind is made when the time is
// over, and gets a moment: whoever was not let run for that long has an agent who can be
// told all the same, and may have been answered.
type conn struct {
	fd  int
	end time.Time
}

// timeout bounds the next call. over is whether there was one past the end.
func (c *conn) timeout(opt int, over *bool) error {
	left := time.Until(c.end)
	if left <= 0 && *over {
		return ErrTimeout
	}
	*over = left <= 0
	// A zero timeval would mean for ever.
	tv := syscall.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
	return syscall.SetsockoptTimeval(c.fd, syscall.SOL_SOCKET, opt, &tv)
}

// errno translates what the bounded calls answer.
func errno(err error) error {
	switch err {
	case syscall.ETIMEDOUT:
		return ErrTimeout
	case syscall.ENOENT, syscall.ENOTDIR, syscall.ECONNREFUSED, syscall.EACCES, syscall.EPERM:
		return ErrAbsent
	case syscall.EPIPE, syscall.ECONNRESET: // hung up: it does not want this peer
		return ErrProtocol
	}
	return err
}

// connect waits while the agent's backlog is full: unix(7) connections obey
// SO_SNDTIMEO.
func (c *conn) connect(path string) error {
	for over := false; ; {
		if err := c.timeout(syscall.SO_SNDTIMEO, &over); err != nil {
			return err
		}
		err := syscall.Connect(c.fd, &syscall.SockaddrUnix{Name: path})
		if err == syscall.EINTR || err == syscall.EAGAIN { // Go's own preemption signals; a unix socket may simply try again
			continue
		}
		if err != nil {
			return errno(err)
		}
		return nil
	}
}

func (c *conn) write(b []byte) error {
	for over := false; len(b) > 0; {
		if err := c.timeout(syscall.SO_SNDTIMEO, &over); err != nil {
			return err
		}
		n, err := syscall.Write(c.fd, b)
		if n > 0 {
			b = b[n:]
		}
		if err != nil && err != syscall.EINTR && err != syscall.EAGAIN {
			return errno(err)
		}
	}
	return nil
}

func (c *conn) read(b []byte) error {
	for over := false; len(b) > 0; {
		if err := c.timeout(syscall.SO_RCVTIMEO, &over); err != nil {
			return err
		}
		n, err := syscall.Read(c.fd, b)
		switch {
		case err == syscall.EINTR || err == syscall.EAGAIN: // whether the time is over is for timeout to say
		case err != nil:
			return errno(err)
		case n == 0:
			return ErrProtocol // hung up without an answer
		default:
			b = b[n:]
		}
	}
	return nil
}
