package bpf

import (
	"net"
	"strings"
	"testing"
)

func TestSetNetwork(t *testing.T) {
	eachWay(t, []Set{SetNetwork}, func(t *testing.T, o Options) {
		r := newSetRoom(t, o, map[Set]uint32{SetNetwork: 0})
		s := r.shell(t)
		l, err := net.Listen("unix", t.TempDir()+"/socket")
		must(t, err)
		defer l.Close()
		ports := strings.Fields(act(t, s, "network", l.Addr().String()))
		r.want(t, SetNetwork, map[string]uint64{
			"connect tcp ipv4 127.0.0.1 1": 1, "connect tcp ipv4 127.0.0.1 2": 1,
			"connect udp ipv4 127.0.0.1 5353": 1, "dns udp ipv4 127.0.0.1 53": 1, "send udp ipv4 127.0.0.1 999": 1,
			"bind udp ipv4 127.0.0.2 7777": 1, "bind stream unix @probity-abstract 0": 1,
			"connect stream unix " + l.Addr().String() + " 0": 1,
		})
		for _, p := range ports {
			family, port, _ := strings.Cut(p, "/")
			addr := map[string]string{"ipv4": "127.0.0.1", "ipv6": "::1"}[family]
			r.want(t, SetNetwork, map[string]uint64{
				"connect tcp " + family + " " + addr + " " + port: 1, "accept tcp " + family + " " + addr + " " + port: 1,
			})
		}
	})
}
