// Command tpm is the first and only process of a virtual machine that has a TPM: it
// keeps a key there by the kernel's device, as the agent does, and says what it signs.
package main

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"probity/evidence/sign/tpm"
	"probity/tests/kernels/guest"
)

func main() {
	if err := run(); err != nil {
		tell(guest.Line{Kind: guest.Fail, Text: err.Error()})
	}
	tell(guest.Line{Kind: guest.Down})
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func tell(l guest.Line) {
	b, err := json.Marshal(l)
	if err != nil {
		panic(err) // it is strings and numbers
	}
	fmt.Printf("\n%s%s\n", guest.Mark, b)
}

func run() error {
	var name unix.Utsname
	if err := errors.Join(unix.Uname(&name), os.MkdirAll("/dev", 0o755), unix.Mount("none", "/dev", "devtmpfs", 0, "")); err != nil {
		return err
	}
	tell(guest.Line{Kind: guest.Up, Release: unix.ByteSliceToString(name.Release[:])})
	blob, err := tpm.Create(tpm.DefaultDevice)
	if err != nil {
		return err
	}
	for range guest.TPMKeys {
		if err := sign(blob); err != nil {
			return err
		}
	}
	return nil
}

func sign(blob []byte) error {
	k, err := tpm.Open(tpm.DefaultDevice, blob)
	if err != nil {
		return err
	}
	public, err := x509.ParsePKIXPublicKey(k.Public().DER())
	if err != nil {
		return err
	}
	for i := range guest.TPMSignatures {
		digest := sha256.Sum256([]byte{byte(i)})
		r, s, err := k.SignDigest(digest)
		if err != nil {
			return errors.Join(err, k.Close())
		}
		if !ecdsa.Verify(public.(*ecdsa.PublicKey), digest[:], r, s) {
			return errors.New("the signature does not match")
		}
		tell(guest.Line{Kind: guest.Out, Step: guest.TPM, Text: "signed"})
	}
	return k.Close()
}
