package image

import (
	"cmp"
	"container/list"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Defaults of a [Cache]. A name costs about 40 bytes in its layer's index and 16
// in each image's tree.
const (
	DefaultEntries      = 1 << 20 // names kept, of layers and of merged trees; 64 bytes of names count as one more
	DefaultLayerEntries = 1 << 19 // names of one layer
)

// Cache keeps the indexes of layers, and the merged trees of lists of layers:
// each is read once, whoever asks first, and the least recently used go when
// there are too many. The zero value is ready to use, and safe for concurrent
// use; it starts no goroutine that outlives a call.
//
// A layer is taken to be immutable, as every runtime treats it: it is known by
// its diff id, directory, device, inode and change time of its root.
type Cache struct {
	Entries      int // default DefaultEntries
	LayerEntries int // default DefaultLayerEntries

	dirs localDirs

	mu      sync.Mutex
	used    list.List // of *kept, most recently used first
	byKey   map[string]*list.Element
	held    int
	flights map[string]chan struct{} // closed when the one who reads is done
}

type kept struct {
	key    string
	value  any // *Index or *merged
	weight int
}

// View merges what a container has. It reads layers that are not known yet;
// its only error is that of ctx: a layer that cannot be read makes every search
// in the view incomplete.
func (c *Cache) View(ctx context.Context, r Rootfs) (*View, error) {
	keys, why := make([]string, 0, len(r.Layers)), ""
	whole := []byte{0}
	if r.UserXattr {
		whole[0] = 1
	}
	for _, l := range r.Layers {
		key, err := c.layerKey(l)
		if err != nil && why == "" {
			why = "layer " + l.Dir + " cannot be read: " + err.Error()
		}
		keys = append(keys, key)
		whole = binary.LittleEndian.AppendUint32(whole, uint32(len(key)))
		whole = append(whole, key...)
	}
	if len(r.Layers) == 0 && r.Upper == "" {
		why = fmt.Sprintf("the layers of a root file system on %s are not known", r.Driver)
	}
	build := func(ctx context.Context) (any, int, error) {
		xs, werr, err := c.indexes(ctx, r.Layers, keys)
		if err != nil {
			return nil, 0, err
		}
		if werr != "" {
			why = werr
		}
		m := merge(xs, r.UserXattr)
		return m, m.weight(), nil
	}
	var m *merged
	if why != "" { // not to be found again: it may be better the next time
		v, _, err := build(ctx)
		if err != nil {
			return nil, err
		}
		m = v.(*merged)
	} else {
		v, err := c.once(ctx, "tree:"+string(whole), func(ctx context.Context) (any, int, bool, error) {
			v, w, err := build(ctx)
			return v, w, why == "", err
		})
		if err != nil {
			return nil, err
		}
		m = v.(*merged)
	}
	return newView(r, m, why, &c.dirs), nil
}

// indexes returns the index of every layer; one that cannot be read is empty,
// and the first reason is returned.
func (c *Cache) indexes(ctx context.Context, layers []Layer, keys []string) (xs []*Index, why string, err error) {
	limit := int64(cmp.Or(max(c.Entries, 0), DefaultEntries))
	var total atomic.Int64
	xs = make([]*Index, len(layers))
	whys := make([]error, len(layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4) // reading is as much waiting as work
	for i, l := range layers {
		g.Go(func() error {
			x, err := c.index(gctx, l, keys[i])
			if err != nil && gctx.Err() != nil {
				return gctx.Err()
			}
			// Evicting does not help while one view holds them all.
			if err == nil && total.Add(int64(x.weight())) > limit {
				err = fmt.Errorf("%w: all layers together have more than %d files", errFull, limit)
			}
			if xs[i], whys[i] = x, err; err != nil {
				xs[i] = &Index{dirs: []dir{{}}}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, "", fmt.Errorf("index layers: %w", err)
	}
	for i, err := range whys {
		if err != nil {
			return xs, "layer " + layers[i].Dir + " cannot be read: " + err.Error(), nil
		}
	}
	return xs, "", nil
}

func (c *Cache) index(ctx context.Context, l Layer, key string) (*Index, error) {
	if key == "" {
		var err error
		if key, err = c.layerKey(l); err != nil {
			return nil, err
		}
	}
	limit := cmp.Or(max(c.LayerEntries, 0), DefaultLayerEntries)
	v, err := c.once(ctx, "layer:"+key, func(ctx context.Context) (any, int, bool, error) {
		fd, err := c.dirs.layer(l)
		if err != nil {
			return nil, 0, false, err
		}
		defer unix.Close(fd)
		x, err := readIndex(ctx, fd, limit)
		if err != nil {
			return nil, 0, false, err
		}
		x.key = key
		return x, x.weight(), true, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*Index), nil
}

// layerKey names a layer by what it is and where it lies.
func (c *Cache) layerKey(l Layer) (string, error) {
	fd, err := c.dirs.layer(l)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	key := make([]byte, 0, 128+len(l.Dir))
	for _, n := range []uint64{uint64(st.Dev), st.Ino, uint64(st.Ctim.Sec), uint64(st.Ctim.Nsec), uint64(l.Owner)} {
		key = binary.LittleEndian.AppendUint64(key, n)
	}
	key = append(key, l.DiffID...)
	key = append(key, 0)
	return string(append(key, l.Dir...)), nil
}

// once returns what is kept under key, or makes it. Of several callers one
// makes it; if it fails or is cancelled, the next one tries for itself.
func (c *Cache) once(ctx context.Context, key string, build func(context.Context) (v any, weight int, keep bool, err error)) (any, error) {
	for {
		c.mu.Lock()
		if el, ok := c.byKey[key]; ok {
			c.used.MoveToFront(el)
			c.mu.Unlock()
			return el.Value.(*kept).value, nil
		}
		busy, ok := c.flights[key]
		if !ok {
			break
		}
		c.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	done := make(chan struct{})
	if c.flights == nil {
		c.flights = map[string]chan struct{}{}
	}
	c.flights[key] = done
	c.mu.Unlock()

	v, weight, keep, err := build(ctx)

	c.mu.Lock()
	delete(c.flights, key)
	if err == nil && keep {
		c.keep(&kept{key, v, weight})
	}
	c.mu.Unlock()
	close(done)
	return v, err
}

// keep adds a value and lets the oldest go. c.mu is held.
func (c *Cache) keep(k *kept) {
	limit := cmp.Or(max(c.Entries, 0), DefaultEntries)
	if k.weight > limit {
		return
	}
	if c.byKey == nil {
		c.byKey = map[string]*list.Element{}
	}
	c.byKey[k.key] = c.used.PushFront(k)
	for c.held += k.weight; c.held > limit; {
		el := c.used.Back()
		old := el.Value.(*kept)
		c.used.Remove(el)
		delete(c.byKey, old.key)
		c.held -= old.weight
	}
}
