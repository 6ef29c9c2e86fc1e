package policy

import (
	"math"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// boolean reads true or false. YAML 1.1 had twenty spellings of them.
func (w *walk) boolean(n *yaml.Node, name string) bool {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || n.Value != "true" && n.Value != "false" {
		if n.Kind == yaml.ScalarNode {
			w.add(at(n), "%s: %q: want true or false", name, clip(n.Value))
		} else {
			w.expect(n, name, "true or false")
		}
		return false
	}
	return n.Value == "true"
}

// count reads a decimal number from 1 to most.
func (w *walk) count(n *yaml.Node, name string, most uint64) uint64 {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" {
		w.expect(n, name, "a decimal number from 1 to "+strconv.FormatUint(most, 10))
		return 0
	}
	v, ok := number(n.Value, false)
	if !ok || v < 1 || v > most {
		w.add(at(n), "%s: %s: want a decimal number from 1 to %d", name, clip(n.Value), most)
		return 0
	}
	return v
}

// duration reads a time with its unit, such as 30s or 1h30m.
func (w *walk) duration(n *yaml.Node, name string, least, most time.Duration) time.Duration {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!int" {
		w.add(at(n), "%s: %s: no unit: want a time such as 30s, 5m or 1h30m", name, clip(n.Value))
		return 0
	}
	s, ok := w.text(n, name, maxText)
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < least || d > most {
		w.add(at(n), "%s: %q: want a time from %s to %s, such as 30s, 5m or 1h30m", name, clip(s), least, most)
		return 0
	}
	return d
}

// offset reads "entry" or a number.
func (w *walk) offset(n *yaml.Node) (Offset, bool) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" && n.Value == "entry" {
		return Offset{Entry: true}, true
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" {
		w.expect(n, "offsets", "entry, a decimal number or a hexadecimal one with 0x")
		return Offset{}, false
	}
	v, ok := number(n.Value, true)
	if !ok {
		w.add(at(n), "offsets: %s: want a decimal number or a hexadecimal one with 0x, less than 2^63", clip(n.Value))
	}
	return Offset{Value: v}, ok
}

// number reads a number as tools print it. YAML has more spellings (0o17,
// 1_000, 010, which was octal once).
func number(s string, hex bool) (uint64, bool) {
	digits, base := s, 10
	if d, ok := strings.CutPrefix(s, "0x"); ok && hex {
		digits, base = d, 16
	} else if len(digits) > 1 && digits[0] == '0' {
		return 0, false
	}
	if strings.Trim(digits, "0123456789abcdefABCDEF") != "" { // signs, which ParseUint refuses, and underscores
		return 0, false
	}
	v, err := strconv.ParseUint(digits, base, 64)
	return v, err == nil && v <= math.MaxInt64
}
