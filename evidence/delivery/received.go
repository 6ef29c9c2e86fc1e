package delivery

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"probity/evidence"
)

// maxReceivedLine bounds one line of a list of what was received.
const maxReceivedLine = 1 << 10

// Whole tells what lies below DIR/INSTANCE/ready, of all that was ever put together
// there, oldest first of each instance: the digests are of the bytes that are there
// now. A chunk that is not what its own envelope names is an error.
func Whole(ctx context.Context, dir string, tell func(Chunk) error) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	defer root.Close()
	names, err := fs.Glob(root.FS(), "*/"+readyDir+"/*/*.ndjson")
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunk := strings.TrimSuffix(path.Base(name), ".ndjson")
		_, instance, ok := evidence.ParseChunkName(chunk)
		if !ok || name != path.Join(instance, readyDir, evidence.ChunkPath(chunk)) {
			return fmt.Errorf("read %s: %s is not where a chunk of that name lies", dir, name)
		}
		all, err := readChunk(root, name)
		if err == nil {
			err = check(chunk, all)
		}
		if err != nil {
			return fmt.Errorf("read %s: chunk %s: %w", dir, chunk, err)
		}
		if err := tell(wholeChunk(chunk, all)); err != nil {
			return err
		}
	}
	return nil
}

func readChunk(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := io.ReadAll(io.LimitReader(f, evidence.MaxChunkBytes+1))
	switch {
	case err != nil:
		return nil, err
	case len(all) > evidence.MaxChunkBytes:
		return nil, fmt.Errorf("more than %d bytes", evidence.MaxChunkBytes)
	case !bytes.HasSuffix(all, []byte("\n")):
		return nil, errors.New("no newline at its end")
	}
	return all, nil
}

func wholeChunk(chunk string, all []byte) Chunk {
	sum := sha256.Sum256(all)
	return Chunk{chunk, "sha256:" + hex.EncodeToString(sum[:]), len(all)}
}

// ReadReceived reads what a far side says that it has: one [Chunk] a line, in any
// order, as Whole tells them. Anybody may have written it: what is not exactly that
// is an error, and so are two digests for one chunk. Of chunks that nobody wants
// nothing is kept, so that the far side cannot fill the memory.
func ReadReceived(in io.Reader, want func(chunk string) bool) (map[string]Chunk, error) {
	got := map[string]Chunk{}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxReceivedLine)
	for n := 1; lines.Scan(); n++ {
		c, err := parseReceived(lines.Bytes())
		if err != nil {
			return nil, fmt.Errorf("what was received, line %d: %w", n, err)
		}
		if !want(c.Chunk) {
			continue
		}
		if had, twice := got[c.Chunk]; twice && had != c {
			return nil, fmt.Errorf("what was received, line %d: %s has another digest than above", n, c.Chunk)
		}
		got[c.Chunk] = c
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("what was received: %w", err)
	}
	return got, nil
}

func parseReceived(line []byte) (c Chunk, err error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return c, fmt.Errorf("not a chunk that was received: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return c, errors.New("not a chunk that was received: something follows it")
	}
	// encoding/json takes a member twice, and its name in any case.
	found, _ := members(line, "chunk", "digest", "bytes")
	n := 0
	each(line, '{', func(_, _ json.RawMessage) bool { n++; return true })
	if n != 3 || found[0] == nil || found[1] == nil || found[2] == nil {
		return c, errors.New("not a chunk that was received: not exactly chunk, digest and bytes")
	}
	if _, _, ok := evidence.ParseChunkName(c.Chunk); !ok {
		return c, fmt.Errorf("%.80q is no name of a chunk", c.Chunk)
	}
	sum, ok := strings.CutPrefix(c.Digest, "sha256:")
	if b, err := hex.DecodeString(sum); !ok || err != nil || len(b) != sha256.Size || strings.ToLower(sum) != sum {
		return c, fmt.Errorf("chunk %s: %.80q is no digest", c.Chunk, c.Digest)
	}
	if c.Bytes < 1 || c.Bytes > evidence.MaxChunkBytes {
		return c, fmt.Errorf("chunk %s: it cannot have %d bytes", c.Chunk, c.Bytes)
	}
	return c, nil
}
