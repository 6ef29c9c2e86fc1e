//go:build !cgo

package main

import (
	"errors"

	"probity/evidence/sign/pkcs11/wire"
)

// open says what is missing: without cgo no module can be loaded.
func open(wire.Open) (session, []byte, error) {
	return nil, nil, errors.New("this helper was built without cgo and can load no module")
}
