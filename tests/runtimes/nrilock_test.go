package runtimes

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// nriWatch stands between a runtime and its plugin, and takes the time of each request
// of the runtime until its answer. The runtime holds one lock for all its plugins during
// each of them, so that is how long a plugin keeps a node from starting and stopping
// containers, seen from the runtime's side of the socket.
type nriWatch struct {
	socket string // for the plugin to connect to

	mu    sync.Mutex
	open  map[uint32]request // by stream
	calls []call
}

type request struct {
	method string
	at     time.Time
}

type call struct {
	method   string
	from, to time.Time
}

func watchNRI(t *testing.T, runtime string) *nriWatch {
	t.Helper()
	w := &nriWatch{socket: filepath.Join(NewScratch(t).Dir, "nri.sock"), open: map[uint32]request{}}
	l, err := net.Listen("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(w.socket, 0o700); err != nil {
		t.Fatal(err)
	}
	var pipes sync.WaitGroup
	pipes.Go(func() {
		for {
			plugin, err := l.Accept()
			if err != nil {
				return
			}
			runtime, err := net.Dial("unix", runtime)
			if err != nil {
				plugin.Close()
				continue
			}
			t.Cleanup(func() { plugin.Close(); runtime.Close() })
			pipes.Go(func() { w.pipe(plugin, runtime, w.request) })
			pipes.Go(func() { w.pipe(runtime, plugin, w.response) })
		}
	})
	t.Cleanup(pipes.Wait)
	t.Cleanup(func() { l.Close() })
	return w
}

// pipe carries one direction's bytes, and has see look at the messages of the plugin's
// service in them: the multiplexer's frames are a connection's number, a length and so
// many bytes, in which ttrpc has ten bytes before each message.
func (w *nriWatch) pipe(to, from net.Conn, see func(stream uint32, kind byte, message []byte)) {
	defer to.Close()
	var frame [8]byte
	var text []byte
	for {
		if _, err := io.ReadFull(from, frame[:]); err != nil {
			return
		}
		payload := make([]byte, binary.BigEndian.Uint32(frame[4:]))
		if _, err := io.ReadFull(from, payload); err != nil {
			return
		}
		if multiplex.ConnID(binary.BigEndian.Uint32(frame[:4])) == multiplex.PluginServiceConn {
			text = append(text, payload...)
			for len(text) >= 10 && len(text) >= 10+int(binary.BigEndian.Uint32(text)) {
				end := 10 + int(binary.BigEndian.Uint32(text))
				see(binary.BigEndian.Uint32(text[4:]), text[8], text[10:end])
				text = text[end:]
			}
		}
		if _, err := to.Write(append(frame[:], payload...)); err != nil {
			return
		}
	}
}

func (w *nriWatch) request(stream uint32, kind byte, message []byte) {
	var r ttrpc.Request
	if kind != 1 || proto.Unmarshal(message, &r) != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[stream] = request{r.Method, time.Now()}
}

func (w *nriWatch) response(stream uint32, kind byte, _ []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r, ok := w.open[stream]; ok && kind == 2 {
		delete(w.open, stream)
		w.calls = append(w.calls, call{r.method, r.at, time.Now()})
	}
}

// held returns the most of any ten seconds that the plugin held the lock, when it
// answered all calls, and how many calls there were of each method.
func (w *nriWatch) held() (most time.Duration, calls map[string]int) {
	const window = 10 * time.Second
	w.mu.Lock()
	defer w.mu.Unlock()
	calls = map[string]int{}
	slices.SortFunc(w.calls, func(a, b call) int { return a.to.Compare(b.to) })
	for i, last := range w.calls {
		calls[last.method]++
		since, sum := last.to.Add(-window), time.Duration(0)
		for _, c := range w.calls[:i+1] {
			if c.to.After(since) {
				if c.from.Before(since) {
					c.from = since
				}
				sum += c.to.Sub(c.from)
			}
		}
		most = max(most, sum)
	}
	return most, calls
}
