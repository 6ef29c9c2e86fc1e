package probe

import (
	"testing"

	"probity/runtime/image"
)

// BenchmarkObjects reads what the files of this machine's /usr are called, as
// the first search in a layer does; known is any later one.
func BenchmarkObjects(b *testing.B) {
	tree := merged(b, image.Rootfs{}, &Inspector{}, "/usr")
	files := 0
	tree.LayerFiles()[0].Each(0, func(string) bool { files++; return true })
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			tree.Inspector = &Inspector{}
			tree.Objects(bySoname("libc.so.*"))
		}
		b.ReportMetric(float64(files), "files")
	})
	b.Run("known", func(b *testing.B) {
		for b.Loop() {
			tree.Objects(bySoname("libc.so.*"))
		}
	})
}
