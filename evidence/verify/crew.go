package verify

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"probity/evidence"
)

// crew checks chunk files, several at once. What it holds in memory is bounded by the
// number of its workers.
type crew struct {
	key     *ring
	opts    Options
	all     *fold
	jobs    chan job
	buffers chan []byte // for what is not read from a file of its own

	chunk sync.Mutex // held while opts.Chunk is called

	mu       sync.Mutex
	files    int // looked at
	findings []Finding
	errs     []error
}

// job is one chunk file to check. Its bytes are in a buffer of the crew, or in the
// file.
type job struct {
	file
	data []byte
}

func newCrew(key *ring, opts Options) *crew {
	c := &crew{key: key, opts: opts, all: newFold(key.file != nil), jobs: make(chan job), buffers: make(chan []byte, opts.Workers+1)}
	for range cap(c.buffers) {
		c.buffers <- nil
	}
	return c
}

// list gives the workers everything there is, and returns the spools that were in
// archives. Archives are read here, one after another.
func (c *crew) list(ctx context.Context, in paths) (trees []spool, err error) {
	var errs []error
	for _, f := range in.files {
		if ctx.Err() != nil {
			return nil, nil
		}
		c.jobs <- job{file: f}
	}
	for _, p := range in.streams {
		more, err := c.stream(ctx, p)
		trees = append(trees, more...)
		if err != nil && ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("%w: %w", ErrLook, err))
		}
	}
	return trees, errors.Join(errs...)
}

// stream reads an archive or standard input.
func (c *crew) stream(ctx context.Context, path string) ([]spool, error) {
	var r io.Reader = c.opts.Stdin
	if path != stdin {
		f, err := openFile(path, false)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	} else if r == nil {
		return nil, errors.New("there is no standard input")
	}
	buffered := bufio.NewReaderSize(r, 64<<10)
	head, err := buffered.Peek(tarBlock)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(head) == 0 {
		return nil, fmt.Errorf("%s: nothing came", path)
	}
	if !isArchive(head) {
		_, err := chunkStream(ctx, path, buffered, c.take)
		if errors.Is(err, errFull) {
			c.say(full(path))
			err = nil
		}
		return nil, err
	}
	a := newArchive(path)
	err = a.read(ctx, buffered, c.take)
	if err == nil {
		if err = a.strays(c.take); errors.Is(err, errFull) {
			a.found, err = append(a.found, full(a.name)), nil
		}
	}
	c.say(a.found...)
	if err == nil && a.n == 0 && len(a.found) == 0 && len(a.roots) == 0 {
		err = fmt.Errorf("%s: an archive without any chunk", path)
	}
	return a.spools(), err
}

func (c *crew) say(found ...Finding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.findings = append(c.findings, found...)
}

// take reads a chunk out of an archive or a stream, and gives it to the workers. An
// error is the reader's, or errFull: what is not a file of its own ends when too
// much is wrong with it.
func (c *crew) take(f file, r io.Reader, size int64) error {
	c.mu.Lock()
	full := len(c.findings) > maxBadEntries
	c.mu.Unlock()
	if full {
		return errFull
	}
	buf := <-c.buffers
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	if _, err := io.ReadFull(r, buf[:size]); err != nil {
		c.buffers <- buf
		return err
	}
	c.jobs <- job{file: f, data: buf[:size]}
	return nil
}

// work checks one file after another. Nothing of a file is kept, so that the next
// one is read into the same memory.
func (c *crew) work() {
	var (
		own   []byte
		lines evidence.Decoder
	)
	for j := range c.jobs {
		var err error
		data := j.data
		if data == nil {
			data, err = j.read(&own)
		}
		switch {
		case errors.Is(err, errVanished):
		case errors.Is(err, errNotChunk):
			c.looked([]Finding{{Kind: Malformed, File: j.path, Reason: err.Error()}}, nil)
		case err != nil:
			c.mu.Lock()
			c.errs = append(c.errs, fmt.Errorf("%w: %w", ErrLook, err))
			c.mu.Unlock()
		default:
			c.looked(c.check(j.file, data, &lines))
		}
		lines.Reset()
		if j.data != nil {
			c.buffers <- j.data[:0]
		}
	}
}

func (c *crew) looked(found []Finding, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files++
	c.findings = append(c.findings, found...)
	if err != nil {
		c.errs = append(c.errs, err)
	}
}

// check checks one chunk's bytes and folds it in if it is sound.
func (c *crew) check(f file, data []byte, lines *evidence.Decoder) ([]Finding, error) {
	var kept []Kept
	if f.rel != "" { // of a file that is named itself no log is checked
		kept = c.opts.Kept
	}
	chunk, findings := checkBytes(f.path, data, c.key, kept, lines)
	if chunk != nil {
		findings = append(findings, f.named(chunk)...)
	}
	if len(findings) > 0 {
		c.all.found(f, nil)
		return findings, nil
	}
	c.all.found(f, chunk)
	c.hand(chunk)
	if c.opts.Bundles == "" {
		return nil, nil
	}
	if err := WriteBundle(c.opts.Bundles, chunk); err != nil {
		return nil, fmt.Errorf("%w: bundle of %s: %w", ErrLook, f.path, err)
	}
	return nil, nil
}

// late checks a chunk that a log names, and that was not looked at, after all others
// were. What has another digest than its leaf says is not it.
func (c *crew) late(f file, chunk, digest string) (inLog, []Finding, error) {
	data, err := f.read(new([]byte))
	if err != nil {
		return inLog{}, nil, err
	}
	return c.lateBytes(f, data, chunk, digest)
}

// lateBytes is late for what was read.
func (c *crew) lateBytes(f file, data []byte, chunk, digest string) (inLog, []Finding, error) {
	if sum := sha256.Sum256(data); digest != "sha256:"+hex.EncodeToString(sum[:]) {
		return inLog{}, nil, fmt.Errorf("%w: it is not the one that the log has", errNotChunk)
	}
	c.files++
	found, err := c.check(f, data, new(evidence.Decoder))
	if len(found) > 0 || err != nil {
		return inLog{}, found, err
	}
	return c.all.inLog[filepath.Clean(f.spool)][chunk], nil, nil
}

// hand gives a sound chunk to who asked for them.
func (c *crew) hand(chunk *Chunk) {
	if c.opts.Chunk == nil {
		return
	}
	c.chunk.Lock()
	defer c.chunk.Unlock()
	c.opts.Chunk(chunk)
}
