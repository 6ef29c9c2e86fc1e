package main

import (
	"net"
	"testing"
	"time"
)

// Whoever starts for long asks for more time, and does not ask for each chunk.
func TestExtend(t *testing.T) {
	path := t.TempDir() + "/notify"
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	starting := extend()
	for range 1000 {
		starting()
	}
	if err := manager.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := manager.Read(b)
	if err != nil || string(b[:n]) != "EXTEND_TIMEOUT_USEC=30000000" {
		t.Errorf("%q, %v", b[:n], err)
	}
	// At most one a second; the machine may have taken a few for this.
	if err := manager.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	for more := 1; ; more++ {
		if _, err := manager.Read(b); err != nil {
			break
		}
		if more > 60 {
			t.Fatal("it asks all the time")
		}
	}
}
