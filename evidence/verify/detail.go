package verify

import (
	"slices"
	"strconv"

	"probity/evidence"
)

// entryKey is what tells an entry of a set from others of the same path, digest
// and build id. Its parent is only that of the first time, and so is its process, but
// for how it came into the container. Only the address may have spaces in it, so
// it comes last.
func entryKey(o *evidence.Observation) string {
	e, session := o.Entry, ""
	if o.Set == evidence.SetExec && o.Process != nil {
		session = o.Process.Session
	}
	port := strconv.Itoa(1e5 + e.Port) // sorts by number
	inode := ""
	if e.Inode != 0 {
		inode = strconv.FormatUint(uint64(e.Inode), 10)
	}
	if e.Argument != "" {
		session += " " + strconv.Quote(e.Argument)
	}
	return session + " " + e.Operation + " " + e.Protocol + " " + e.Family + " " + e.Access + " " + e.Mapped + " " + e.Device + " " + inode + " " + port + " " + e.Address
}

// What follows copies what a row keeps, without the chunk that it is a part of.

func (f *fold) process(p *evidence.Process) *evidence.Process {
	if p == nil {
		return nil
	}
	return &evidence.Process{Pid: p.Pid, Comm: f.keep(p.Comm), Path: f.keep(p.Path), Session: f.keep(p.Session)}
}

func (f *fold) entry(e *evidence.Entry) *evidence.Entry {
	if e == nil {
		return nil
	}
	return &evidence.Entry{
		Parent: f.process(e.Parent), Argument: f.keep(e.Argument), Device: f.keep(e.Device), Inode: e.Inode, Mapped: f.keep(e.Mapped), Operation: f.keep(e.Operation),
		Protocol: f.keep(e.Protocol), Family: f.keep(e.Family), Address: f.keep(e.Address), Port: e.Port, Access: f.keep(e.Access),
	}
}

func (f *fold) instances(list []evidence.Instance) []evidence.Instance {
	out := slices.Clone(list)
	for i := range out {
		out[i].In = f.keep(out[i].In)
	}
	return out
}

func (f *fold) stack(s *evidence.Stack) *evidence.Stack {
	if s == nil {
		return nil
	}
	out := &evidence.Stack{Frames: slices.Clone(s.Frames), More: s.More, Truncated: s.Truncated, Reason: f.keep(s.Reason)}
	for i := range out.Frames {
		x := &out.Frames[i]
		x.BuildID, x.Path, x.Symbol, x.Reason = f.keep(x.BuildID), f.keep(x.Path), f.keep(x.Symbol), f.keep(x.Reason)
	}
	return out
}

func (f *fold) duration(d *evidence.Duration) *evidence.Duration {
	if d == nil {
		return nil
	}
	out := *d // its counts are numbers, in a list of their own
	out.Unit = f.keep(d.Unit)
	return &out
}

func (f *fold) calls(list []evidence.SystemCalls) []evidence.SystemCalls {
	out := slices.Clone(list)
	for i := range out {
		out[i].Arch = f.keep(out[i].Arch)
	}
	return out
}
