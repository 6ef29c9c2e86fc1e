package evidence_test

import (
	"probity/evidence"
	"probity/evidence/score"
)

// vectorLines3 has every member that can be redacted, redacted at least once, and
// names that only look like it.
func vectorLines3(c evidence.Clock) []evidence.Line {
	const (
		run    = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
		id     = "1111111111111111111111111111111111111111111111111111111111111111"
		digest = "sha256:4444444444444444444444444444444444444444444444444444444444444444"
	)
	at := func(ms int64) evidence.Time { return c.Time(int64(c.BootNs) + ms*1e6) }
	num := func(n uint64) *evidence.Uint64 { u := evidence.Uint64(n); return &u }
	enforced := true
	home, token := evidence.Mark("home", ""), evidence.Mark("home", "0123456789abcdef")
	list := func(items ...string) (out []evidence.Redaction) {
		for i := 0; i < len(items); i += 2 {
			out = append(out, evidence.Redaction{Member: items[i], Rule: items[i+1]})
		}
		return out
	}
	line := func(o evidence.Observation) *evidence.Observation {
		o.State, o.FirstAt, o.LastAt, o.Complete, o.Count = evidence.Hit, at(20), at(30), true, num(2)
		o.RunID, o.ContainerID, o.Runtime, o.ImageDigestReason, o.From, o.To = run, id, "crun", "the manifest of "+evidence.Mark("customers", "")+" is not here", at(11), at(401)
		o.Redacted = append(list("imageDigestReason", "customers"), o.Redacted...)
		if o.Set != "" {
			o.ProbeID, o.ProbeType, o.RequestedProbeType = "set-"+o.Set, evidence.RawTracepoint, evidence.UnknownProbe
		}
		o.Confidence = score.Confidence(o.ProbeType, score.AttributionCgroup, score.SymbolEvent, evidence.Losses{})
		return &o
	}
	return []evidence.Line{
		&evidence.Coverage{ // 2
			RunID: run, ContainerID: id, Runtime: "crun", Image: "registry.example/" + evidence.Mark("customers", ""), ImageDigestReason: "the manifest of " + evidence.Mark("customers", "") + " is not here",
			BootID: "5b1a7f9e-3c0d-4e2a-9b8c-7d6e5f4a3b2c", CgroupID: 77, Attribution: score.AttributionCgroup, Source: "hook", From: at(11), To: at(401),
			FailPolicyEnforced: &enforced, Refused: "probe open is not armed: fileUnreadable",
			Probes:   []evidence.ProbeFold{{ProbeID: "open", State: evidence.Hit, Sites: 1, SearchReason: home}, {ProbeID: "set-exec", State: evidence.Hit, Sites: 1, SearchComplete: true}},
			Redacted: list("image", "customers", "imageDigestReason", "customers", "probes.searchReason", "home"),
		},
		line(evidence.Observation{ // 3
			ProbeID: "open", ProbeType: evidence.Uprobe, RequestedProbeType: evidence.Uprobe, Symbol: "open", Offset: num(4409), Path: "/home/" + token + "/lib.so",
			FileDigest: digest, Process: &evidence.Process{Pid: 4712, Path: "/home/" + home + "/tool"}, Detail: home,
			Processes: []evidence.Process{{Pid: 4712, Path: "/home/" + home + "/tool"}, {Pid: 4713, Comm: "sh", Path: "/bin/sh"}},
			Stack: &evidence.Stack{Frames: []evidence.Frame{{BuildID: "aa11", Offset: num(4660), Path: "/home/" + home + "/tool"}, {BuildID: "aa12", Offset: num(1), Path: "/lib/libc.so"}},
				Truncated: true, Reason: home},
			Redacted: list("path", "home", "stack.frames.path", "home", "stack.reason", "home", "detail", "home", "process.comm", "home", "process.path", "home", "processes.comm", "home", "processes.path", "home"),
		}),
		line(evidence.Observation{ // 4
			Set: evidence.SetExec, Path: home, FileDigest: digest,
			Entry:    &evidence.Entry{Parent: &evidence.Process{Pid: 1, Path: "/home/" + home + "/sh"}, Argument: home},
			Redacted: list("path", "home", "entry.parent.comm", "tasks", "entry.parent.path", "home", "entry.argument", "home", "entry.device", "home", "entry.inode", "home"),
		}),
		line(evidence.Observation{ // 5
			Set:      evidence.SetNetwork,
			Entry:    &evidence.Entry{Operation: "connect", Protocol: "tcp", Family: "ipv4", Address: evidence.Mark("peers", "")},
			Redacted: list("entry.address", "peers", "entry.port", "peers"),
		}),
		line(evidence.Observation{ // 6: a file of this name
			Set: evidence.SetFiles, Path: "/tmp/" + home, Entry: &evidence.Entry{Access: "read"},
		}),
		&evidence.Gap{GapID: "g-1", Scope: evidence.ScopeFile, Reason: evidence.GapFileChanged, From: at(11), Count: evidence.Loss{N: 1}, // 7
			RunID: run, ContainerID: id, Path: "/home/" + token + "/lib.so", Detail: evidence.Mark("home", ""), Redacted: list("path", "home", "detail", "home")},
	}
}

// coalescedLines are of a run of which lines were left out for later ones: the gap
// opens, then ends, and a site's latest line is older than it.
func coalescedLines(c evidence.Clock) []evidence.Line {
	const (
		run    = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
		id     = "1111111111111111111111111111111111111111111111111111111111111111"
		image  = "sha256:3333333333333333333333333333333333333333333333333333333333333333"
		digest = "sha256:4444444444444444444444444444444444444444444444444444444444444444"
	)
	at := func(ms int64) evidence.Time { return c.Time(int64(c.BootNs) + ms*1e6) }
	num := func(n uint64) *evidence.Uint64 { u := evidence.Uint64(n); return &u }
	coverage := func(to int64, state evidence.State, reasons ...evidence.GapReason) *evidence.Coverage {
		return &evidence.Coverage{
			RunID: run, ContainerID: id, Runtime: "crun", ImageDigest: image, BootID: "5b1a7f9e-3c0d-4e2a-9b8c-7d6e5f4a3b2c", CgroupID: 77,
			Attribution: score.AttributionCgroup, Source: "hook", From: at(11), To: at(to),
			Probes: []evidence.ProbeFold{{ProbeID: "ssl", State: state, Sites: 2, SearchComplete: true}}, GapReasons: reasons,
		}
	}
	site := func(symbol string, offset, count uint64, to int64, gaps ...evidence.SiteGap) *evidence.Observation {
		return &evidence.Observation{
			State: evidence.Hit, ProbeType: evidence.Uprobe, RequestedProbeType: evidence.Uprobe, RunID: run, ContainerID: id, Runtime: "crun", ImageDigest: image,
			ProbeID: "ssl", Symbol: symbol, Offset: num(offset), Path: "/usr/lib/libssl.so.3", FileDigest: digest, Origin: "imageLayer", SymbolKind: "func", Inline: "none",
			Count: num(count), FirstAt: at(20), LastAt: at(to - 1), Complete: true, Gaps: gaps, From: at(11), To: at(to),
			Confidence: score.Confidence(evidence.Uprobe, score.AttributionCgroup, score.SymbolFunc, evidence.Losses{}),
		}
	}
	gap := func(to int64, n uint64) *evidence.Gap {
		g := &evidence.Gap{GapID: "c-1", Scope: evidence.ScopeRun, Reason: evidence.GapCoalesced, From: at(50), Count: evidence.Loss{N: n},
			RunID: run, ContainerID: id, Detail: "the spool is nearly full"}
		if to != 0 {
			g.To = at(to)
		}
		return g
	}
	return []evidence.Line{
		coverage(30, evidence.Hit),
		site("SSL_read", 4409, 2, 30),
		site("SSL_write", 5000, 1, 30),
		gap(0, 1),
		coverage(200, evidence.Hit, evidence.GapCoalesced),
		site("SSL_read", 4409, 90, 400, evidence.SiteGap{Reason: evidence.GapCoalesced, From: at(50), To: at(390), DurationNs: 340e6, Count: evidence.Loss{N: 3}}),
		gap(390, 3),
	}
}
