// Package wire is what the OCI hook and the agent say to each other: one
// request, one answer, over a unix stream socket. It holds the numbers that
// both sides share and the asking half; the answering half is runtime/handoff.
//
// In: a stage and the bytes that the OCI runtime wrote to the hook's stdin.
// Out: the agent's verdict. The asking half trusts whoever listens on the path
// it is given; the path's directory is what protects it. Nothing is parsed
// here, and an answer that is late, cut short or not well formed is an error,
// never a verdict. It is not a control: whether the bytes are true is for
// runtime/oci to find out.
//
//	request: "PRB1", 1 byte stage, uint32 length, that many bytes
//	answer:  1 byte verdict, uint16 length, that many bytes of UTF-8
//
// Numbers are big-endian. A length of TooLong in a request means that the
// state was longer than MaxBody and is not sent at all, so that the agent
// learns that it missed a container.
//
// The package is linked into the hook, which starts once for every container:
// it uses system calls and no package net, which would double the program.
package wire

import "errors"

// The bounds and the words of the format.
const (
	Magic   = "PRB1"
	MaxBody = 1 << 20 // bytes of a container state
	TooLong = MaxBody + 1

	HeaderBytes  = len(Magic) + 1 + 4
	AnswerBytes  = 1 + 2
	MaxMessage   = 1 << 10 // bytes of an answer's message
	DefaultPath  = "/run/probity/hook.sock"
	maxPathBytes = 107 // sizeof(sun_path) less the final zero
)

// Stage is the hook stage a request comes from.
type Stage byte

// The stages that are used (OCI runtime-spec, "POSIX-platform Hooks").
const (
	CreateRuntime Stage = 'c'
	Poststop      Stage = 'p'
)

// ParseStage returns the stage with the runtime-spec's name.
func ParseStage(name string) (Stage, bool) {
	switch name {
	case "createRuntime":
		return CreateRuntime, true
	case "poststop":
		return Poststop, true
	}
	return 0, false
}

// Valid reports whether s is one of the stages above.
func (s Stage) Valid() bool { return s == CreateRuntime || s == Poststop }

func (s Stage) String() string {
	switch s {
	case CreateRuntime:
		return "createRuntime"
	case Poststop:
		return "poststop"
	}
	return "unknown"
}

// The verdicts.
const (
	Proceed byte = 0
	Refuse  byte = 1
)

// ErrAbsent says that nobody listens, or that the caller may not ask: there is
// no agent for this container.
var ErrAbsent = errors.New("no agent")

// ErrTimeout says that a deadline passed.
var ErrTimeout = errors.New("deadline passed")

// ErrProtocol says that the other side does not speak this format.
var ErrProtocol = errors.New("not an answer of the agent")

// AppendHeader appends the header of a request with a body of n bytes.
func AppendHeader(b []byte, s Stage, n int) []byte {
	b = append(b, Magic...)
	return append(b, byte(s), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

// ParseHeader reads the header of a request. It accepts exactly what
// AppendHeader writes for a valid stage; n is at most TooLong.
func ParseHeader(h [HeaderBytes]byte) (s Stage, n int, err error) {
	if string(h[:len(Magic)]) != Magic {
		return 0, 0, ErrProtocol
	}
	s = Stage(h[len(Magic)])
	size := uint32(h[5])<<24 | uint32(h[6])<<16 | uint32(h[7])<<8 | uint32(h[8])
	if !s.Valid() || size > TooLong {
		return 0, 0, ErrProtocol
	}
	return s, int(size), nil
}

// AppendAnswer appends an answer; a longer message is cut.
func AppendAnswer(b []byte, verdict byte, message string) []byte {
	if len(message) > MaxMessage {
		message = message[:MaxMessage]
		for len(message) > 0 && message[len(message)-1]&0xC0 == 0x80 { // not within a character
			message = message[:len(message)-1]
		}
		message = message[:max(0, len(message)-1)]
	}
	b = append(b, verdict, byte(len(message)>>8), byte(len(message)))
	return append(b, message...)
}

// parseAnswer reads the fixed part of an answer.
func parseAnswer(h [AnswerBytes]byte) (verdict byte, n int, err error) {
	n = int(h[1])<<8 | int(h[2])
	if h[0] > Refuse || n > MaxMessage {
		return 0, 0, ErrProtocol
	}
	return h[0], n, nil
}
