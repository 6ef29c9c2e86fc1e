package evidence_test

import (
	"probity/evidence"
	"probity/evidence/score"
)

// vectorLines2 has every member that came with version 2 of the format at least
// once.
func vectorLines2(c evidence.Clock) []evidence.Line {
	const (
		run    = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
		id     = "1111111111111111111111111111111111111111111111111111111111111111"
		image  = "sha256:3333333333333333333333333333333333333333333333333333333333333333"
		digest = "sha256:4444444444444444444444444444444444444444444444444444444444444444"
		layer  = "sha256:5555555555555555555555555555555555555555555555555555555555555555"
	)
	at := func(ms int64) evidence.Time { return c.Time(int64(c.BootNs) + ms*1e6) }
	num := func(n uint64) *evidence.Uint64 { u := evidence.Uint64(n); return &u }
	// line is what all of this run's observations have alike.
	line := func(pt evidence.ProbeType, symbol string, o evidence.Observation) *evidence.Observation {
		o.RunID, o.ContainerID, o.Runtime, o.ImageDigest, o.From, o.To = run, id, "crun", image, at(11), at(401)
		if o.State == "" {
			o.State, o.FirstAt, o.LastAt, o.Complete = evidence.Hit, at(20), at(30), true
		}
		o.ProbeType = pt
		switch {
		case o.Set != "":
			o.RequestedProbeType = evidence.UnknownProbe
		case o.RequestedProbeType == "":
			o.RequestedProbeType = pt
		}
		o.Confidence = score.Confidence(pt, score.AttributionCgroup, symbol, evidence.Losses{})
		return &o
	}
	of := func(set string, o evidence.Observation) *evidence.Observation {
		o.ProbeID, o.Set = "set-"+set, set
		return line(evidence.RawTracepoint, score.SymbolEvent, o)
	}
	parent := &evidence.Process{Pid: 4711, Comm: "sh", Path: "/bin/sh", Session: evidence.SessionExec}
	return []evidence.Line{
		&evidence.Coverage{ // 2
			RunID: run, ContainerID: id, Runtime: "crun", ImageDigest: image, BootID: "5b1a7f9e-3c0d-4e2a-9b8c-7d6e5f4a3b2c", CgroupID: 77,
			Attribution: score.AttributionCgroup, Source: "hook", From: at(11), To: at(401),
			Losses: evidence.Losses{
				KernelMissed: evidence.Loss{Unknowable: true}, Reason: "kernel 6.1 does not count missed uprobe programs",
				ByType: []evidence.TypeLoss{{ProbeType: evidence.Uprobe, KernelMissed: evidence.Loss{Unknowable: true}}, {ProbeType: evidence.Kprobe, KernelMissed: evidence.Loss{N: 3}}},
			},
			Probes:     []evidence.ProbeFold{{ProbeID: "set-exec", State: evidence.Hit, Sites: 1, Entries: 2, SearchComplete: true}},
			GapReasons: []evidence.GapReason{evidence.GapKernelMissed, evidence.GapStoodDown},
		},
		line(evidence.Uprobe, score.SymbolFunc, evidence.Observation{ // 3
			ProbeID: "ssl", Symbol: "_ZN3ssl9handshakeEv", Offset: num(4409), Path: "/usr/lib/libssl.so.3", FileDigest: digest, BuildID: "9d5c0ffe",
			Origin: "imageLayer", LayerDiffID: layer, SymbolKind: "func", Inline: "inlinedAt", Demangled: "ssl::handshake()", Wanted: "ssl::hand*",
			InlinedAt: []evidence.Instance{{Offset: 5000, In: "ssl::connect()"}, {Offset: 6000}}, InlinedAtMore: 7,
			Duration: evidence.NewDuration([]uint64{0, 0, 2, 1}, 23, 1),
			Stack: &evidence.Stack{
				Frames: []evidence.Frame{
					{BuildID: "9d5c0ffe", Offset: num(4409), Path: "/usr/lib/libssl.so.3", Symbol: "_ZN3ssl9handshakeEv"},
					{BuildID: "aa11", Offset: num(4660)}, {Reason: "anonymous"}, {Offset: num(64), Path: "/opt/app", Reason: "noBuildId"},
				},
				More: 2, Truncated: true, Reason: "the chain of frame pointers ends in code without them",
			},
			Count: num(4), Process: &evidence.Process{Pid: 4712, Comm: "curl", Path: "/usr/bin/curl"},
		}),
		line(evidence.Uprobe, score.SymbolInlined, evidence.Observation{ // 4
			ProbeID: "ssl", Symbol: "_ZN3ssl9handshakeEv", Offset: num(5000), Path: "/usr/lib/libssl.so.3", FileDigest: digest,
			SymbolKind: "inlined", InlinedIn: "ssl::connect()", State: evidence.ArmedNoHit, Count: num(0), Complete: true,
		}),
		line(evidence.Uprobe, score.SymbolOffset, evidence.Observation{ // 5
			ProbeID: "copy", Symbol: "memcpy", Offset: num(8192), Path: "/usr/lib/libc.so.6", FileDigest: digest,
			Implements: "memcpy", Count: num(1),
		}),
		line(evidence.Kprobe, score.SymbolKernel, evidence.Observation{ // 6
			ProbeID: "open", RequestedProbeType: evidence.Fentry, Function: "__x64_sys_openat", Wanted: "openat", Detail: "fentry: this kernel has no trampolines",
			Count: num(12), Process: parent,
		}),
		line(evidence.USDT, score.SymbolEvent, evidence.Observation{ // 7
			ProbeID: "gc", Event: "python:gc__start", Wanted: "python:gc*", Offset: num(70000), Path: "/usr/lib/libpython3.so", FileDigest: digest, Count: num(1),
		}),
		line(evidence.Uprobe, score.SymbolFunc, evidence.Observation{ // 8
			ProbeID: "go", RequestedProbeType: evidence.Uretprobe, Symbol: "main.work", Offset: num(90000), Path: "/app", FileDigest: digest, SymbolKind: "func",
			Inline: "none", State: evidence.Partial, Count: num(0),
			Gaps: []evidence.SiteGap{{Reason: evidence.GapStoodDown, From: at(40), DurationNs: 361000000, Count: evidence.Loss{N: 1}}},
		}),
		of(evidence.SetExec, evidence.Observation{Count: num(3), Entries: 2, // 9
			Gaps: []evidence.SiteGap{{Reason: evidence.GapSetFull, From: at(30), DurationNs: 371000000, Count: evidence.Loss{N: 1}}}}),
		&evidence.Observation{ // 10: a set before its first entry
			State: evidence.ArmedNoHit, ProbeType: evidence.RawTracepoint, RunID: run, ContainerID: id, Runtime: "crun", ImageDigest: image,
			ProbeID: "set-exec-of-another-probe", RequestedProbeType: evidence.UnknownProbe, Set: evidence.SetExec, Count: num(0),
			Confidence: score.Confidence(evidence.RawTracepoint, score.AttributionCgroup, score.SymbolEvent, evidence.Losses{}), Complete: true, From: at(11), To: at(401),
		},
		of(evidence.SetExec, evidence.Observation{Path: "/usr/bin/curl", FileDigest: digest, Origin: "upper", Count: num(2), // 11
			Entry: &evidence.Entry{Parent: parent, Argument: "/usr/local/bin/curl"}, Process: &evidence.Process{Pid: 4712, Comm: "curl"}}),
		of(evidence.SetLibraries, evidence.Observation{Path: "/usr/lib/libz.so.1", BuildID: "9d5c0ffe", Origin: "imageLayer", LayerDiffID: layer, Count: num(1), // 12
			Entry: &evidence.Entry{Device: "0:57", Inode: 1234567, Mapped: "private"}}),
		of(evidence.SetNetwork, evidence.Observation{Count: num(1), // 13
			Entry: &evidence.Entry{Operation: "connect", Protocol: "tcp", Family: "ipv6", Address: "2001:db8::1", Port: 443}}),
		of(evidence.SetFiles, evidence.Observation{Path: "/etc/\u2028passwd\"<&>", Count: num(1), Entry: &evidence.Entry{Access: "write"}}), // 14
		of(evidence.SetSyscalls, evidence.Observation{Count: num(5), IOUring: true, // 15
			SystemCalls: []evidence.SystemCalls{{Arch: "x86_64", Numbers: []int{0, 1, 59, 231}, Beyond: true}, {Arch: "i386", Numbers: []int{4}}}}),
		&evidence.Gap{GapID: "g-1", Scope: evidence.ScopeRun, Reason: evidence.GapKernelMissed, From: at(11), Count: evidence.Loss{N: 3}, // 16
			RunID: run, ContainerID: id, ProbeType: evidence.Kprobe},
		&evidence.Gap{GapID: "g-2", Scope: evidence.ScopeSite, Reason: evidence.GapStoodDown, From: at(40), Count: evidence.Loss{N: 1}, // 17
			RunID: run, ContainerID: id, Path: "/app", ProbeID: "go", Symbol: "main.work", Offset: num(90000), Detail: "stopAfter: 1"},
	}
}
