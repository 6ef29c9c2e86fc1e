package pkcs11

import (
	"bytes"
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	u, err := ParseURI("pkcs11:token=My%20token;manufacturer=SoftHSM%20project;serial=0a%3b1;model=v2;slot-id=12;object=node;id=%00%ff%2F;type=private?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin")
	if err != nil {
		t.Fatal(err)
	}
	if u.Token != "My token" || u.Manufacturer != "SoftHSM project" || u.Serial != "0a;1" || u.Model != "v2" || *u.Slot != 12 || u.Object != "node" ||
		!bytes.Equal(u.ID, []byte{0, 0xff, '/'}) || u.Module != "/usr/lib/softhsm/libsofthsm2.so" || u.PINSource != "/run/pin" {
		t.Errorf("%+v", u)
	}
	for uri, pin := range map[string]string{
		"pkcs11:object=a?module-path=/m":                                "",
		"pkcs11:object=a?pin-source=/p&module-path=/m":                  "/p",
		"pkcs11:object=a?module-path=/m&pin-source=credential:pin":      "credential:pin",
		"pkcs11:object=a&b;id=%61?module-path=/m":                       "",
		"pkcs11:id=%61;token=%C3%A9?module-path=%2Fm&pin-source=%2Fpin": "/pin",
	} {
		if u, err := ParseURI(uri); err != nil || u.PINSource != pin || u.Module != "/m" {
			t.Errorf("%s: %+v, %v", uri, u, err)
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	for uri, want := range map[string]string{
		"":                                                          "begin with pkcs11:",
		"PKCS11:object=a?module-path=/m":                            "begin with pkcs11:",
		"pkcs11:":                                                   "module-path is missing",
		"pkcs11:object=a":                                           "module-path is missing",
		"pkcs11:?module-path=/m":                                    "object and id are missing",
		"pkcs11:token=t?module-path=/m":                             "object and id are missing",
		"pkcs11:object?module-path=/m":                              "NAME=VALUE",
		"pkcs11:object=a;?module-path=/m":                           "NAME=VALUE",
		"pkcs11:=a?module-path=/m":                                  "NAME=VALUE",
		"pkcs11:object=?module-path=/m":                             "empty",
		"pkcs11:object=a;object=b?module-path=/":                    "twice",
		"pkcs11:object=a?module-path=/m&module-path=/n":             "twice",
		"pkcs11:object=a b?module-path=/m":                          "%20",
		"pkcs11:object=a/b?module-path=/m":                          "%2F",
		"pkcs11:object=a%?module-path=/m":                           "unfinished",
		"pkcs11:object=a%2?module-path=/m":                          "unfinished",
		"pkcs11:object=a%zz?module-path=/m":                         "%XX",
		"pkcs11:object=%+1?module-path=/m":                          "%XX",
		"pkcs11:object=a%00?module-path=/m":                         "not text",
		"pkcs11:object=%ff?module-path=/m":                          "not text",
		"pkcs11:object=a;type=public?module-path=/m":                "want private",
		"pkcs11:object=a;slot-id=-1?module-path=/m":                 "not a number",
		"pkcs11:object=a;slot-id=01?module-path=/m":                 "not a number",
		"pkcs11:object=a;library-version=3?module-path=/m":          "not supported",
		"pkcs11:object=a;x-vendor=3?module-path=/m":                 "not supported",
		"pkcs11:object=a?module-path=m.so":                          "absolute",
		"pkcs11:object=a?module-name=softhsm":                       "not supported",
		"pkcs11:object=a?module-path=/m&pin-value=1234":             "use pin-source",
		"pkcs11:object=a?module-path=/m&pin-source=|cat":            "absolute",
		"pkcs11:object=a?module-path=/m&pin-source=credential:../x": "name of one",
		"pkcs11:object=a?module-path=/m&pin-source=credential:":     "name of one",
		"pkcs11:object=a?module-path=/m#x":                          "%23",
		"pkcs11:id=" + strings.Repeat("a", 300) + "?module-path=/m": "more than 256",
		"pkcs11:object=" + strings.Repeat("a", 4000):                "more than 2048",
	} {
		if u, err := ParseURI(uri); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %+v, %v; want %q", uri, u, err, want)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("pkcs11:token=My%20token;object=node;id=%00?module-path=/m&pin-source=credential:pin")
	f.Add("pkcs11:object=a;slot-id=4294967295?module-path=/m&pin-source=file:/p")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s)
		if err != nil {
			return
		}
		if u.Module[0] != '/' || u.Object == "" && len(u.ID) == 0 || strings.Contains(u.Module+u.Object, "\x00") {
			t.Errorf("%q: %+v", s, u)
		}
	})
}
