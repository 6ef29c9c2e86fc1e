package dial

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"testing"
)

func TestListenerUID(t *testing.T) {
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if uid, err := ListenerUID(c.(*net.UnixConn)); err != nil || int(uid) != os.Geteuid() || !Trusted(uid) {
		t.Errorf("uid %d, %v", uid, err)
	}
	if Trusted(uint32(os.Geteuid()) + 1) {
		t.Error("another user is trusted")
	}
	c.Close()
	if _, err := ListenerUID(c.(*net.UnixConn)); err == nil {
		t.Error("nobody listens at a connection that is closed")
	}
}

// An error is told when it is another one, or after a connection.
func TestAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	absent, refused := errors.New("absent"), errors.New("refused")
	results := []struct {
		connected bool
		err       error
	}{{false, absent}, {false, absent}, {false, refused}, {true, absent}, {false, absent}, {true, nil}, {false, refused}}
	var told []error
	n := 0
	Again(ctx, func() (bool, error) {
		if n == len(results) {
			cancel()
			return true, absent // it ends with ctx: that is no news
		}
		n++
		return results[n-1].connected, results[n-1].err
	}, func(err error) { told = append(told, err) })
	if want := []error{absent, refused, absent, refused}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}
