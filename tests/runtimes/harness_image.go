package runtimes

import (
	"os/exec"
	"path/filepath"
	"strings"

	"probity/tests/ociarchive"
)

// Compile runs the machine's gcc on args, with the result in out.
func Compile(t T, out string, args ...string) {
	t.Helper()
	ctx, cancel := within(t, Patience)
	defer cancel()
	if _, err := output(exec.CommandContext(ctx, "gcc", append([]string{"-o", out, "-O1", "-Wall"}, args...)...)); err != nil {
		t.Fatalf("compile: %v", err)
	}
}

// CompileC compiles C source text and returns the path of the result.
// Programs that are to run in an image without libraries take "-static".
func CompileC(t T, s *Scratch, name, source string, args ...string) string {
	t.Helper()
	out := s.Path(name)
	Compile(t, out, append([]string{s.write(t, name+".c", source)}, args...)...)
	return out
}

// WriteImage writes img as an OCI archive into the scratch directory and
// returns the archive's path and the manifest's digest.
func WriteImage(t T, s *Scratch, file string, img ociarchive.Image) (archive, digest string) {
	t.Helper()
	archive = s.Path(file)
	digest, err := ociarchive.Write(archive, img)
	if err != nil {
		t.Fatalf("image %s: %v", img.Name, err)
	}
	return archive, digest
}

// BuildImage writes an image with one layer that holds files and runs args.
func BuildImage(t T, s *Scratch, name string, args []string, files ...ociarchive.File) (archive, digest string) {
	t.Helper()
	file, _, _ := strings.Cut(filepath.Base(name), ":") // podman takes no colon in a path
	return WriteImage(t, s, file+".tar", ociarchive.Image{
		Name: name, Layers: [][]ociarchive.File{files}, Entrypoint: args[:1], Cmd: args[1:],
	})
}

// HostFile reads a file of this machine for an image.
func HostFile(t T, src, dst string) ociarchive.File {
	t.Helper()
	f, err := ociarchive.FromHost(src, dst)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return f
}

// The demo's image (tests/demo): the program and its library.
const (
	DemoImageName = "localhost/probity-demo:latest"
	DemoLibrary   = "/usr/lib/probity/libgreet.so.1"
)

// DemoImage compiles the C files in source, which is tests/demo/image of the
// repository, and writes the demo's image to archive. It returns the
// manifest's digest.
func DemoImage(t T, s *Scratch, source, archive string) string {
	t.Helper()
	lib, prog := s.Path("libgreet.so.1"), s.Path("caller")
	Compile(t, lib, "-shared", "-fPIC", "-Wl,-soname,libgreet.so.1", filepath.Join(source, "greet.c"))
	Compile(t, prog, "-Wl,-rpath,"+filepath.Dir(DemoLibrary), filepath.Join(source, "caller.c"), lib)
	files, err := ociarchive.WithLibraries(prog, "/usr/bin/caller", []string{s.Dir}, "libgreet.so.1")
	if err != nil {
		t.Fatalf("%v", err)
	}
	real := HostFile(t, lib, DemoLibrary+".0")
	digest, err := ociarchive.Write(archive, ociarchive.Image{
		Name: DemoImageName,
		Layers: [][]ociarchive.File{
			files, // the system's part
			{real, {Path: DemoLibrary, Link: filepath.Base(real.Path)}}, // ours, in a layer of its own
		},
		Entrypoint: []string{"/usr/bin/caller"},
	})
	if err != nil {
		t.Fatalf("image %s: %v", DemoImageName, err)
	}
	return digest
}
