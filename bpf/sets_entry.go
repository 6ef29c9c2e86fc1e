package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
	stdutf8 "unicode/utf8"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EventSet announces a new entry of a set: see [SetEntry.Decode].
const EventSet = EventKind(probesEventTypeEVENT_SET)

// EventCall says that a container made a system call for the first time: see
// [Objects.SystemCalls].
const EventCall = EventKind(probesEventTypeEVENT_CALL)

// SetKey tells the entries of one container apart.
type SetKey struct {
	Set      Set
	what     uint8
	family   uint8
	typ      uint8
	protocol uint16
	port     uint16
	id       [3]uint64
}

// Bytes are the key as bytes, which are those of no other entry of the container.
func (k SetKey) Bytes() (b [32]byte) {
	b[0], b[1], b[2], b[3] = uint8(k.Set), k.what, k.family, k.typ
	binary.NativeEndian.PutUint16(b[4:], k.protocol)
	binary.NativeEndian.PutUint16(b[6:], k.port)
	for i, x := range k.id {
		binary.NativeEndian.PutUint64(b[8+8*i:], x)
	}
	return b
}

// SetEntry is one entry of a set. Everything but Count and LastNs is of the
// first time. It holds its text itself, so that one value can be used for any
// number of entries without asking for memory; copy it to keep it.
type SetEntry struct {
	SetKey
	Cgroup  uint64
	Count   uint64
	FirstNs int64 // CLOCK_BOOTTIME
	LastNs  int64

	Pid     int // process, as the host numbers it
	Tid     int
	Parent  int
	Session Session
	MountNS uint32 // of a file: the mount namespace that its path begins in, by inode number

	// Of a file: what stat(2) and statfs(2) would have said then.
	CtimeNs int64
	Size    uint64
	Magic   uint64
	Mode    uint32

	flags      uint32
	comm       [16]byte
	parentComm [16]byte
	path, arg  int // lengths of the two in text
	text       [setTextLen]byte
}

const setTextLen = len(setsSetEntry{}.Text)

// Accesses, mappings and operations, as c/sets.h has them and the evidence
// writes them.
var (
	accessNames    = map[uint8]string{uint8(setsAccessACCESS_READ): "read", uint8(setsAccessACCESS_WRITE): "write", uint8(setsAccessACCESS_EXEC): "exec"}
	mappingNames   = map[uint8]string{uint8(setsMappingMAPPING_PRIVATE): "private", uint8(setsMappingMAPPING_PRIVATE_WRITABLE): "privateWritable", uint8(setsMappingMAPPING_SHARED): "shared", uint8(setsMappingMAPPING_SHARED_WRITABLE): "sharedWritable"}
	operationNames = map[uint8]string{uint8(setsOperationOP_CONNECT): "connect", uint8(setsOperationOP_ACCEPT): "accept", uint8(setsOperationOP_BIND): "bind", uint8(setsOperationOP_SEND): "send"}
)

const allPathFlags = setsPathFlagsPATH_WALKED | setsPathFlagsPATH_GIVEN | setsPathFlagsPATH_CUT | setsPathFlagsPATH_OUTSIDE | setsPathFlagsPATH_DETACHED | setsPathFlagsPATH_DELETED | setsPathFlagsPATH_ARG_CUT | setsPathFlagsPATH_CHROOT

// IsSetEvent reports whether a record of the ring buffer announces an entry of
// a set. Decode does not take those.
func IsSetEvent(b []byte) bool {
	return len(b) >= 4 && EventKind(binary.NativeEndian.Uint32(b)) == EventSet
}

// Offsets in a record, from the generated struct.
const (
	atCgroup = unsafe.Offsetof(setsSetEvent{}.Cgroup)
	atKey    = unsafe.Offsetof(setsSetEvent{}.Key)
	atEntry  = unsafe.Offsetof(setsSetEvent{}.Entry)
	atText   = int(atEntry + unsafe.Offsetof(setsSetEntry{}.Text))
)

// Decode decodes one record strictly: known type, set and kind of entry, exact
// size, terminated strings. It asks for no memory. On error e is zero.
func (e *SetEntry) Decode(b []byte) (err error) {
	defer func() {
		if err != nil {
			*e = SetEntry{}
		}
	}()
	if !IsSetEvent(b) || len(b) < atText || len(b) > atText+setTextLen {
		return fmt.Errorf("%w: %d bytes are no entry of a set", ErrDecode, len(b))
	}
	e.Cgroup = binary.NativeEndian.Uint64(b[atCgroup:])
	if err := e.SetKey.decode(b[atKey:atEntry]); err != nil {
		return err
	}
	if err := e.decode(b[atEntry:]); err != nil {
		return err
	}
	if n := len(b) - atText; n != e.path+e.arg {
		return fmt.Errorf("%w: %d bytes of text, its lengths say %d", ErrDecode, n, e.path+e.arg)
	}
	return nil
}

func (k *SetKey) decode(b []byte) error {
	*k = SetKey{
		Set: Set(b[unsafe.Offsetof(setsSetKey{}.Set)]), what: b[unsafe.Offsetof(setsSetKey{}.What)],
		family: b[unsafe.Offsetof(setsSetKey{}.Family)], typ: b[unsafe.Offsetof(setsSetKey{}.Type)],
		protocol: binary.NativeEndian.Uint16(b[unsafe.Offsetof(setsSetKey{}.Protocol):]),
		port:     binary.NativeEndian.Uint16(b[unsafe.Offsetof(setsSetKey{}.Port):]),
	}
	for i := range k.id {
		k.id[i] = binary.NativeEndian.Uint64(b[int(unsafe.Offsetof(setsSetKey{}.Id))+8*i:])
	}
	return k.check()
}

func (k *SetKey) check() error {
	known := false
	switch k.Set {
	case SetExec:
		known = k.what <= uint8(SessionExec)
	case SetLibraries:
		known = mappingNames[k.what] != ""
	case SetFiles:
		known = accessNames[k.what] != ""
	case SetNetwork:
		known = operationNames[k.what] != ""
	}
	if !known {
		return fmt.Errorf("%w: %s has no entries of kind %d", ErrDecode, k.Set, k.what)
	}
	return nil
}

// decode reads an entry whose text may be cut off after its used part.
func (e *SetEntry) decode(b []byte) error {
	u64 := func(at uintptr) uint64 { return binary.NativeEndian.Uint64(b[at:]) }
	u32 := func(at uintptr) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	var x setsSetEntry
	e.Count, e.FirstNs, e.LastNs = u64(unsafe.Offsetof(x.Count)), int64(u64(unsafe.Offsetof(x.FirstNs))), int64(u64(unsafe.Offsetof(x.LastNs)))
	e.CtimeNs, e.Size, e.Magic = int64(u64(unsafe.Offsetof(x.CtimeNs))), u64(unsafe.Offsetof(x.Size)), u64(unsafe.Offsetof(x.Magic))
	e.Pid, e.Tid, e.Parent = int(u32(unsafe.Offsetof(x.Pid))), int(u32(unsafe.Offsetof(x.Tid))), int(u32(unsafe.Offsetof(x.Parent)))
	e.Session, e.Mode, e.flags = Session(u32(unsafe.Offsetof(x.Session))), u32(unsafe.Offsetof(x.Mode)), u32(unsafe.Offsetof(x.PathFlags))
	e.MountNS = u32(unsafe.Offsetof(x.MntNs))
	e.path = int(binary.NativeEndian.Uint16(b[unsafe.Offsetof(x.PathLen):]))
	e.arg = int(binary.NativeEndian.Uint16(b[unsafe.Offsetof(x.ArgLen):]))
	copy(e.comm[:], b[unsafe.Offsetof(x.Comm):])
	copy(e.parentComm[:], b[unsafe.Offsetof(x.ParentComm):])
	text := b[unsafe.Offsetof(x.Text):]
	switch {
	case e.path+e.arg > len(text):
		return fmt.Errorf("%w: %d bytes of text, its lengths say %d and %d", ErrDecode, len(text), e.path, e.arg)
	case e.Count == 0 || e.FirstNs <= 0 || e.Session > SessionExec || e.flags&^uint32(allPathFlags) != 0:
		return fmt.Errorf("%w: count %d, time %d, session %d, flags %#x", ErrDecode, e.Count, e.FirstNs, e.Session, e.flags)
	case e.comm[len(e.comm)-1] != 0 || e.parentComm[len(e.parentComm)-1] != 0:
		return fmt.Errorf("%w: a name is not terminated", ErrDecode)
	}
	copy(e.text[:], text[:e.path+e.arg])
	return nil
}

// rawEntry is a setsSetEntry as the kernel has it.
type rawEntry [unsafe.Sizeof(setsSetEntry{})]byte

// set takes an entry as the map has it.
func (e *SetEntry) set(cgroup uint64, k *setsSetKey, v *rawEntry) error {
	e.Cgroup = cgroup
	e.SetKey = SetKey{Set(k.Set), k.What, k.Family, k.Type, k.Protocol, k.Port, k.Id}
	if err := e.check(); err != nil {
		return err
	}
	return e.decode(v[:])
}

func utf8(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	if stdutf8.Valid(b) {
		return string(b)
	}
	return string(bytes.ToValidUTF8(b, []byte("\uFFFD")))
}

// Comm is the process's own name for itself, at most 15 bytes.
func (e *SetEntry) Comm() string { return utf8(e.comm[:]) }

// ParentComm is that of the process which it descends from.
func (e *SetEntry) ParentComm() string { return utf8(e.parentComm[:]) }

// Path is the file's path as the process could have named it, found by walking
// from the file up to the process's root, or what there is of it: see
// [SetEntry.PathDoubt].
func (e *SetEntry) Path() string { return utf8(e.text[:e.path]) }

// Argument is the path as given to execve.
func (e *SetEntry) Argument() string {
	if e.Set != SetExec {
		return ""
	}
	return utf8(e.text[e.path : e.path+e.arg])
}

// PathDoubt says in what way Path is not the file's whole path inside the
// container; empty if it is.
func (e *SetEntry) PathDoubt() string {
	for _, d := range []struct {
		flag setsPathFlags
		why  string
	}{
		{setsPathFlagsPATH_CUT, "the path's beginning is missing: it is too long"},
		{setsPathFlagsPATH_OUTSIDE, "the file is not in the process's mount namespace: the path begins where its own mounts do"},
		{setsPathFlagsPATH_DETACHED, "the file has no place in a directory"},
		{setsPathFlagsPATH_DELETED, "the file was in no directory any more"},
	} {
		if e.flags&uint32(d.flag) != 0 {
			return d.why
		}
	}
	switch {
	case e.Set == SetNetwork:
	case e.path == 0:
		return "the path could not be read"
	case e.Given():
		return "the path is what the process gave: which file the kernel took is not known"
	case !stdutf8.Valid(e.text[:e.path]):
		return "the path is not UTF-8: \uFFFD stands for what is not"
	}
	return ""
}

// PathCut reports whether the beginning of Path may be missing, or its end.
func (e *SetEntry) PathCut() bool {
	return e.flags&uint32(setsPathFlagsPATH_CUT|setsPathFlagsPATH_OUTSIDE) != 0 || e.Given() && e.ArgumentCut()
}

// ArgumentCut reports whether the end of Argument is missing.
func (e *SetEntry) ArgumentCut() bool { return e.flags&uint32(setsPathFlagsPATH_ARG_CUT) != 0 }

// PathKnown reports whether Path is a path in the container's own tree.
func (e *SetEntry) PathKnown() bool {
	return e.path > 0 && e.PathDoubt() == ""
}

// Chrooted reports whether the process had another root than its mount
// namespace. The path begins at the namespace's all the same.
func (e *SetEntry) Chrooted() bool { return e.flags&uint32(setsPathFlagsPATH_CHROOT) != 0 }

// Given reports whether the path or address is what the process gave, and the
// kernel's own copy was not seen.
func (e *SetEntry) Given() bool { return e.flags&uint32(setsPathFlagsPATH_GIVEN) != 0 }

// Device is the number of the file's device, major and minor.
func (k SetKey) Device() (major, minor uint32) {
	return uint32(k.id[0]) >> 20, uint32(k.id[0]) & (1<<20 - 1)
}

// Inode is the number of the file's inode.
func (k SetKey) Inode() uint64 { return k.id[1] }

// Access is read, write or exec.
func (k SetKey) Access() string { return nameOf(k, SetFiles, accessNames) }

// Mapping is private, privateWritable, shared or sharedWritable.
func (k SetKey) Mapping() string { return nameOf(k, SetLibraries, mappingNames) }

// Operation is connect, accept, bind or send, or dns for what goes to port 53.
func (k SetKey) Operation() string {
	op := setsOperation(k.what)
	if k.Set == SetNetwork && k.port == 53 && (op == setsOperationOP_CONNECT || op == setsOperationOP_SEND) {
		return "dns"
	}
	return nameOf(k, SetNetwork, operationNames)
}

func nameOf(k SetKey, s Set, names map[uint8]string) string {
	if k.Set != s {
		return ""
	}
	return names[k.what]
}

// Family is ipv4, ipv6, unix, vsock, netlink, packet or other.
func (k SetKey) Family() string {
	switch k.family {
	case unix.AF_INET:
		return "ipv4"
	case unix.AF_INET6:
		return "ipv6"
	case unix.AF_UNIX:
		return "unix"
	case unix.AF_VSOCK:
		return "vsock"
	case unix.AF_NETLINK:
		return "netlink"
	case unix.AF_PACKET:
		return "packet"
	}
	return "other"
}

// Protocol is tcp, udp, sctp, icmp or raw; of other families stream, dgram,
// seqpacket or raw; else other.
func (k SetKey) Protocol() string {
	inet := k.family == unix.AF_INET || k.family == unix.AF_INET6
	switch {
	case inet && k.typ == unix.SOCK_RAW:
		return "raw"
	case inet && (k.protocol == unix.IPPROTO_TCP || k.protocol == unix.IPPROTO_MPTCP):
		return "tcp"
	case inet && (k.protocol == unix.IPPROTO_UDP || k.protocol == unix.IPPROTO_UDPLITE):
		return "udp"
	case inet && k.protocol == unix.IPPROTO_SCTP:
		return "sctp"
	case inet && (k.protocol == unix.IPPROTO_ICMP || k.protocol == unix.IPPROTO_ICMPV6):
		return "icmp"
	case inet:
		return "other"
	case k.typ == unix.SOCK_STREAM:
		return "stream"
	case k.typ == unix.SOCK_DGRAM:
		return "dgram"
	case k.typ == unix.SOCK_SEQPACKET:
		return "seqpacket"
	case k.typ == unix.SOCK_RAW:
		return "raw"
	}
	return "other"
}

// Address is the address of the other side; of accept and bind the own one. A
// name of a Unix socket that is in no directory begins with '@'; of a virtual
// machine's socket it is "CID:PORT".
func (e *SetEntry) Address() string {
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], e.id[0])
	binary.NativeEndian.PutUint64(b[8:], e.id[1])
	switch e.family {
	case unix.AF_INET:
		return netip.AddrFrom4([4]byte(b[:4])).String()
	case unix.AF_INET6:
		return netip.AddrFrom16(b).String()
	case unix.AF_VSOCK:
		return fmt.Sprintf("%d:%d", uint32(e.id[0]), uint32(e.id[1]))
	case unix.AF_UNIX:
		name := e.text[e.path : e.path+e.arg]
		if len(name) == 0 || name[0] != 0 {
			return utf8(name)
		}
		return "@" + string(bytes.ToValidUTF8(bytes.ReplaceAll(name[1:], []byte{0}, []byte{'@'}), []byte("\uFFFD")))
	}
	return ""
}

// Port is 0 where there are no ports.
func (k SetKey) Port() int { return int(k.port) }

// Ctime is when the file's content or attributes changed last before.
func (e *SetEntry) Ctime() time.Time { return time.Unix(0, e.CtimeNs) }
