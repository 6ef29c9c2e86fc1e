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
	began := time.Now()
	go func() {
		starting := extend()
		for range 1000 {
			starting()
		}
		end, err := net.Dial("unixgram", path)
		if err == nil {
			_, err = end.Write([]byte("end"))
			end.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}()
	if err := manager.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	asked := 0
	for b := make([]byte, 100); ; asked++ {
		n, err := manager.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if string(b[:n]) == "end" {
			break
		}
		if string(b[:n]) != "EXTEND_TIMEOUT_USEC=30000000" {
			t.Errorf("%q", b[:n])
		}
	}
	if most := int(time.Since(began)/time.Second) + 1; asked < 1 || asked > most {
		t.Errorf("asked %d times in %v", asked, time.Since(began))
	}
}
