package pkcs11

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"
)

// URI names a private key on a token (RFC 7512). Every part that is given must fit.
type URI struct {
	Token        string
	Manufacturer string
	Serial       string
	Model        string
	Slot         *uint64 // slot-id
	Object       string
	ID           []byte
	Module       string // module-path: absolute
	// PINSource is where the PIN is: an absolute path, or credential:NAME for a
	// systemd credential. "" if the token wants none.
	PINSource string
}

// maxURI bounds a URI, maxID a key's id.
const (
	maxURI = 2048
	maxID  = 256
)

// ParseURI reads a pkcs11: URI. It takes no attribute that would not be looked at,
// and no PIN: configuration is no place for one.
func ParseURI(s string) (URI, error) {
	u, err := parseURI(s)
	if err != nil {
		return URI{}, fmt.Errorf("pkcs11 URI: %w", err)
	}
	return u, nil
}

func parseURI(s string) (u URI, err error) {
	if len(s) > maxURI {
		return u, fmt.Errorf("more than %d bytes", maxURI)
	}
	rest, ok := strings.CutPrefix(s, "pkcs11:")
	if !ok {
		return u, errors.New("it does not begin with pkcs11:")
	}
	path, query, asks := strings.Cut(rest, "?")
	seen := map[string]bool{}
	each := func(list, sep, also string, take func(name, value string) error) error {
		for part := range strings.SplitSeq(list, sep) {
			name, raw, ok := strings.Cut(part, "=")
			if !ok || name == "" {
				return fmt.Errorf("%.40q is not NAME=VALUE", part)
			}
			if seen[name] {
				return fmt.Errorf("%s twice", name)
			}
			seen[name] = true
			value, err := unescape(raw, also)
			if err != nil {
				return fmt.Errorf("%.40s: %w", name, err)
			}
			if value == "" {
				return fmt.Errorf("%.40s: empty", name)
			}
			if name != "id" && (!utf8.ValidString(value) || strings.ContainsRune(value, 0)) {
				return fmt.Errorf("%.40s: not text", name)
			}
			if err := take(name, value); err != nil {
				return fmt.Errorf("%.40s: %w", name, err)
			}
		}
		return nil
	}
	if path != "" {
		if err := each(path, ";", "&", u.pathAttribute); err != nil {
			return u, err
		}
	}
	if asks {
		if err := each(query, "&", "/?|", u.queryAttribute); err != nil {
			return u, err
		}
	}
	switch {
	case u.Module == "":
		return u, errors.New("module-path is missing: which module to load")
	case u.Object == "" && len(u.ID) == 0:
		return u, errors.New("object and id are missing: which key to use")
	}
	return u, nil
}

func (u *URI) pathAttribute(name, v string) error {
	switch name {
	case "token":
		u.Token = v
	case "manufacturer":
		u.Manufacturer = v
	case "serial":
		u.Serial = v
	case "model":
		u.Model = v
	case "object":
		u.Object = v
	case "id":
		if len(v) > maxID {
			return fmt.Errorf("more than %d bytes", maxID)
		}
		u.ID = []byte(v)
	case "slot-id":
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil || strconv.FormatUint(n, 10) != v {
			return errors.New("not a number")
		}
		u.Slot = &n
	case "type":
		if v != "private" {
			return errors.New("want private: it is the key that signs")
		}
	default:
		return errors.New("this attribute is not supported")
	}
	return nil
}

func (u *URI) queryAttribute(name, v string) error {
	switch name {
	case "module-path":
		if !filepath.IsAbs(v) {
			return errors.New("want an absolute path")
		}
		u.Module = v
	case "pin-source":
		v = strings.TrimPrefix(v, "file:")
		if credential, ok := strings.CutPrefix(v, "credential:"); ok {
			if credential == "" || credential == "." || credential == ".." || strings.Contains(credential, "/") {
				return errors.New("credential: want the name of one")
			}
		} else if !filepath.IsAbs(v) {
			return errors.New("want an absolute path, or credential:NAME")
		}
		u.PINSource = v
	case "pin-value":
		return errors.New("a PIN does not belong here: use pin-source")
	default:
		return errors.New("this attribute is not supported")
	}
	return nil
}

// unescape decodes a value: the characters that RFC 7512 section 2.3 leaves as they
// are, those in also, and %XX.
func unescape(s, also string) (string, error) {
	const plain = "-._~:[]@!$'()*+,="
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%':
			if i+2 >= len(s) {
				return "", errors.New("an unfinished %XX")
			}
			n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", fmt.Errorf("%q is not %%XX", s[i:i+3])
			}
			b.WriteByte(byte(n))
			i += 2
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(plain, c) >= 0, strings.IndexByte(also, c) >= 0:
			b.WriteByte(c)
		default:
			return "", fmt.Errorf("the character %q has to be written %%%02X", c, c)
		}
	}
	return b.String(), nil
}
