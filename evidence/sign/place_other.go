//go:build unix && !linux

package sign

import "os"

func placeWhole(string, string, []byte, os.FileMode) error { return errNoName }
