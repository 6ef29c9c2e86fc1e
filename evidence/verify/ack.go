package verify

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"probity/evidence"
)

// AckDir is where consumers say what they have carried away, below a spool's
// directory: CONSUMER.json.
const AckDir = "ack"

// Acks reads what all consumers of a spool say. What is no acknowledgement is
// returned by its name, with the reason: who writes there is not the agent.
func Acks(spool *os.Root) (acks []evidence.Ack, bad map[string]error, err error) {
	return acksIn(mindfulFS{spool})
}

func acksIn(spool fs.FS) (acks []evidence.Ack, bad map[string]error, err error) {
	names, err := fs.ReadDir(spool, AckDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	bad = map[string]error{}
	for _, n := range names {
		consumer, ok := strings.CutSuffix(n.Name(), ".json")
		if !ok || strings.HasPrefix(consumer, ".") {
			continue // on its way
		}
		a, err := ackIn(spool, consumer)
		switch {
		case errors.Is(err, fs.ErrNotExist): // taken back since
		case err != nil:
			bad[n.Name()] = err
		default:
			acks = append(acks, a)
		}
	}
	return acks, bad, nil
}

// Ack reads what one consumer says; fs.ErrNotExist if it has said nothing.
func Ack(spool *os.Root, consumer string) (evidence.Ack, error) {
	return ackIn(mindfulFS{spool}, consumer)
}

func ackIn(spool fs.FS, consumer string) (evidence.Ack, error) {
	f, err := spool.Open(path.Join(AckDir, consumer+".json"))
	if err != nil {
		return evidence.Ack{}, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return evidence.Ack{}, errors.Join(errors.New("not a regular file"), err)
	}
	b, err := io.ReadAll(io.LimitReader(f, evidence.MaxAckBytes+1))
	if err != nil {
		return evidence.Ack{}, err
	}
	a, err := evidence.ParseAck(b)
	if err == nil && a.Consumer != consumer {
		err = fmt.Errorf("it is the acknowledgement of %s", a.Consumer)
	}
	return a, err
}
