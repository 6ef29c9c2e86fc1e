// Package containerd connects to containerd's socket, for whoever asks it something.
//
// In: the socket's path. Out: a connection on which, each time that it is made, root
// (or the agent's own user) listens, at a socket that belongs to it and that not
// everybody may write to. What is said on it is trusted as containerd is.
//
// It is not a control: whoever else may write to the socket (its group) can have
// containerd do anything, and publish events.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"probity/runtime/dial"
)

// The namespaces whose containers are not their users' own.
const (
	CRI    = "k8s.io" // what the CRI plugin makes
	Docker = "moby"   // what docker makes
)

// MaxMessage is the longest message that is taken, in bytes.
const MaxMessage = 16 << 20

// Client returns a connection to the socket, which is made when it is first used, and
// again when it is lost; least is the least time that each try has.
func Client(socket string, least time.Duration) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // connect looks who listens
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return connect(ctx, socket) }),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: 2 * time.Second},
			MinConnectTimeout: least,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage)))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", socket, err)
	}
	return conn, nil
}

// In is a context for calls in one of containerd's namespaces.
func In(ctx context.Context, namespace string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
}

// ErrSocket is wrapped by what is returned of a socket that is not one of root's.
var ErrSocket = errors.New("not a socket that root alone has made")

// connect connects to the socket and looks who listens.
func connect(ctx context.Context, socket string) (net.Conn, error) {
	var st unix.Stat_t
	if err := unix.Stat(socket, &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", socket, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return nil, fmt.Errorf("%s: %w: it is no socket", socket, ErrSocket)
	case !dial.Trusted(st.Uid):
		return nil, fmt.Errorf("%s: %w: it belongs to uid %d", socket, ErrSocket, st.Uid)
	case st.Mode&0o002 != 0:
		return nil, fmt.Errorf("%s: %w: everybody may write to it (mode %#o)", socket, ErrSocket, st.Mode&0o777)
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	if err := listener(c.(*net.UnixConn)); err != nil {
		c.Close()
		return nil, fmt.Errorf("look who listens on %s: %w", socket, err)
	}
	return c, nil
}

func listener(c *net.UnixConn) error {
	uid, err := dial.ListenerUID(c)
	if err == nil && !dial.Trusted(uid) {
		err = fmt.Errorf("%w: uid %d does", ErrSocket, uid)
	}
	return err
}
