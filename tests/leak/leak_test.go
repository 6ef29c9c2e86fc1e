package leak

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMore(t *testing.T) {
	before := descriptors()
	if left := more(before, descriptors()); len(left) != 0 {
		t.Errorf("nothing was opened: %q", left)
	}
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if left := more(before, descriptors()); len(left) != 1 || filepath.Base(left[0]) != "file" {
		t.Errorf("one file was opened: %q", left)
	}
}
