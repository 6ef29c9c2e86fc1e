package agent

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"probity/evidence"
	"probity/evidence/redact"
	"probity/evidence/sign"
	"probity/evidence/verify"
	"probity/tests/need"
)

// The key of a running agent is changed: to another file, and to a credential that the
// configuration names then. What fails leaves the old one in use. Evidence goes on
// in one log, and the first key proves all of it.
func TestRekey(t *testing.T) {
	need.BPF(t)
	dir := t.TempDir()
	state, credentials := dir+"/state", dir+"/credentials"
	must(t, errors.Join(os.Mkdir(dir+"/policies.d", 0o755), os.Mkdir(credentials, 0o700)))
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	ready, hangup := make(chan struct{}), make(chan struct{})
	var named atomic.Pointer[Config] // what the configuration file says now
	cfg := Config{
		Node: "test", State: state, Spool: state + "/spool", Policies: dir + "/policies.d", HookSocket: "none", AdminSocket: dir + "/admin.sock",
		NRISockets: []string{"none"}, ContainerdAddress: dir + "/no.sock", PodmanRoot: dir + "/no", Version: "test", Ready: func() { close(ready) },
		Hangup: hangup,
	}
	named.Store(&cfg)
	name := func(key string) {
		c := cfg
		c.Key = key
		named.Store(&c)
	}
	cfg.Reread = func() (Config, error) { return *named.Load(), nil }
	a, err := New(cfg)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	<-ready
	first := a.key().Public()
	n := 0
	line := func() {
		t.Helper()
		n++
		must(t, a.spool.Append("", func(c evidence.Clock) []redact.Line {
			return noRules.Lines(&evidence.Gap{GapID: strings.Repeat(string(rune('a'+n)), 32), Scope: evidence.ScopeSource, Reason: evidence.GapRuntimeDisconnected, From: c.Wall, To: c.Wall, Source: "x"})
		}))
	}
	inUse := func() string {
		t.Helper()
		var st Status
		must(t, Ask(t.Context(), cfg.AdminSocket, "/status", &st))
		b, err := os.ReadFile(filepath.Join(state, sign.PublicFile))
		must(t, err)
		public, err := sign.LoadPublic(b)
		must(t, err)
		if public.KeyID() != st.KeyID {
			t.Errorf("the agent signs with %s, and node.pub, which is what probity key export prints, is %s", st.KeyID, public.KeyID())
		}
		return st.KeyID
	}
	refused := func(want string, ask func() (Rekeyed, error)) {
		t.Helper()
		before := inUse()
		if got, err := ask(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v, %v; want an error with %q", got, err, want)
		}
		if now := inUse(); now != before {
			t.Errorf("the key was %s, and now it is %s", before, now)
		}
		line()
	}
	rotate := func(req RotateRequest) func() (Rekeyed, error) {
		return func() (Rekeyed, error) { return RotateKey(t.Context(), cfg.AdminSocket, req) }
	}
	reload := func() (Rekeyed, error) {
		done, err := Reload(t.Context(), cfg.AdminSocket)
		return done.Key, err
	}

	line()
	got, err := rotate(RotateRequest{State: state})()
	if err != nil || got.Before != first.KeyID() || !got.InUse || inUse() != got.After || got.After == got.Before {
		t.Fatalf("%+v, %v, in use is %s", got, err, inUse())
	}
	line()
	second := got.After
	refused("state directory", rotate(RotateRequest{State: dir}))
	refused("no such file", rotate(RotateRequest{State: state, To: "credential:new"}))
	refused("want file", rotate(RotateRequest{State: state, To: "hsm"}))
	if _, err := sign.CreateFile(credentials, "new"); err != nil {
		t.Fatal(err)
	}
	name("credential:new")
	refused("nothing says that", reload)
	if got, err = rotate(RotateRequest{State: state, To: "credential:new"})(); err != nil || got.InUse || inUse() != second {
		t.Fatalf("%+v, %v, in use is %s", got, err, inUse())
	}
	must(t, os.Rename(credentials+"/new", credentials+"/gone"))
	refused("no such file", reload)
	must(t, os.Rename(credentials+"/gone", credentials+"/new"))
	third := got.After
	hangup <- struct{}{}
	hangup <- struct{}{} // the first one has been carried out, or is
	if got, err = reload(); err != nil || got.Before != third || got.After != third || inUse() != third {
		t.Fatalf("%+v, %v, in use is %s, not %s", got, err, inUse(), third)
	}
	// Who asks has to be known as a process of this host: see handoff.TestNeighbour.
	mux := http.NewServeMux()
	a.serveChanges(mux)
	for _, path := range []string{"/key/rotate", "/reload"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(`{"state":"`+state+`"}`)))
		if w.Code != http.StatusForbidden || inUse() != third {
			t.Errorf("%s from nobody: %d %s", path, w.Code, w.Body)
		}
	}
	line()
	cancel()
	must(t, <-done)

	rep, err := verify.Path(t.Context(), []string{state + "/spool"}, first, verify.Options{})
	if err != nil || !rep.Sound() || len(rep.Logs) != 1 || len(rep.Followed) != 2 || len(rep.Gaps) != n+1 { // and the end of the agent
		t.Errorf("%d lines in %d chunks, %d gaps of %d, followed %v, %v, %v", rep.Lines, rep.Chunks, len(rep.Gaps), n+1, rep.Followed, rep.Findings, err)
	}
	must(t, a.Close())
	// The next start has the key that the configuration names.
	again := *named.Load()
	again.Ready = nil
	a, err = New(again)
	must(t, err)
	if a.key().KeyID() != third {
		t.Errorf("the next start has %s", a.key().KeyID())
	}
	must(t, a.Close())
}
