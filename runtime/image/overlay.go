package image

import (
	"errors"
	"fmt"
	"strings"
)

// maxLayers is the kernel's own bound (fs/overlayfs/params.c, OVL_MAX_STACK).
const maxLayers = 500

// overlay is what the options of an overlay superblock say about its layers.
type overlay struct {
	lower     []string // top first; may be relative to where the mounter stood
	upper     string
	userxattr bool // overlay's attributes are user.overlay.*, not trusted.overlay.*
	dataOnly  bool // there are layers that only redirected files can reach
}

// parseOverlay decodes superblock options as mountinfo shows them. The kernel
// escapes values by seq_show_option; within lowerdir= and upperdir= a backslash
// of overlayfs's own protects a character, mostly the ':' between layers; in
// lowerdir+= (Linux 6.8, one option per layer) it does not.
func parseOverlay(super string) (overlay, error) {
	var o overlay
	for opt := range strings.SplitSeq(super, ",") {
		key, val, _ := strings.Cut(opt, "=")
		val, err := octal(val)
		if err != nil {
			return o, err
		}
		switch key {
		case "lowerdir":
			layers, dataOnly, err := splitLayers(val)
			if err != nil {
				return o, fmt.Errorf("lowerdir: %w", err)
			}
			o.lower, o.dataOnly = append(o.lower, layers...), o.dataOnly || dataOnly
		case "lowerdir+":
			if val == "" {
				return o, errors.New("lowerdir+ is empty")
			}
			o.lower = append(o.lower, val)
		case "datadir+":
			o.dataOnly = true
		case "upperdir":
			if o.upper, err = unprotect(val); err != nil {
				return o, fmt.Errorf("upperdir: %w", err)
			}
		case "userxattr":
			o.userxattr = true
		}
		if len(o.lower) > maxLayers {
			return o, fmt.Errorf("more than %d layers", maxLayers)
		}
	}
	if len(o.lower) == 0 {
		return o, errors.New("no lower layer is shown")
	}
	return o, nil
}

// splitLayers splits at ':' and drops what follows "::".
func splitLayers(s string) (layers []string, dataOnly bool, err error) {
	start := 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] == '\\' {
			if i++; i == len(s) {
				return nil, false, errors.New("ends in a backslash")
			}
			continue // whatever is protected does not separate
		}
		if i < len(s) && s[i] != ':' {
			continue
		}
		l, err := unprotect(s[start:min(i, len(s))])
		if err != nil {
			return nil, false, err
		}
		if l == "" {
			return nil, false, errors.New("an empty layer")
		}
		layers = append(layers, l)
		if i+1 < len(s) && s[i+1] == ':' {
			return layers, true, nil
		}
		start = i + 1
	}
	return layers, false, nil
}

// unprotect is the kernel's ovl_unescape.
func unprotect(s string) (string, error) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			if i++; i == len(s) {
				return "", errors.New("ends in a backslash")
			}
		}
		b = append(b, s[i])
	}
	return string(b), nil
}
