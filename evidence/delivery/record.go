package delivery

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"probity/evidence"
)

// Record is one line of a chunk, as it was delivered.
type Record struct {
	Chunk  string // the name, from the file's
	Offset int64  // of the line's first byte in the file
	Line   string // without its newline
}

// Parse reads one line of a delivery:
//
//   - {"file":"PATH","offset":N,"message":"LINE"}, of rsyslog, Vector and Fluent
//     Bit as packaging/shippers configures them;
//   - {"log":{"file":{"path":"PATH"},"offset":N},"message":"LINE"}, of Filebeat;
//   - {"resourceLogs":[...]}, the OpenTelemetry Collector's batch in OTLP's JSON, as its
//     file exporter writes it and its OTLP/HTTP exporter sends it.
//
// An offset may be a decimal string. Other members are the shipper's own and not
// looked at; so is how texts are spelled, since the chunk's digest decides what is
// right. others counts records of files whose names are not a chunk's. The records
// are valid also with an error, which is about others of the same batch. What it takes
// is a small multiple of the line's length, whatever is in it.
func Parse(line []byte) (records []Record, others int, err error) {
	var v valid
	if err := json.Unmarshal(line, &v); err != nil {
		return nil, 0, fmt.Errorf("not a JSON object: %w", err)
	}
	var bad batchError
	take := func(file, offset, message json.RawMessage) {
		r, ours, err := recordOf(text(file), offset, message)
		switch {
		case !ours:
			others++
		case err != nil:
			bad.add(err)
		default:
			records = append(records, r)
		}
	}
	top, ok := members(line, "resourceLogs", "file", "offset", "message", "log")
	switch batch := top[0]; {
	case !ok:
		return nil, 0, errors.New("not a JSON object: another value")
	case batch != nil:
		if !eachRecord(batch, take) {
			bad.add(errors.New("not a batch of OTLP"))
		}
	case text(top[1]) != "":
		take(top[1], top[2], top[3])
	default:
		log, _ := members(top[4], "file", "offset")
		file, _ := members(log[0], "path")
		take(file[0], log[1], top[3])
	}
	return records, others, bad.join()
}

// batchError keeps what was wrong first of a batch, and how often something was.
type batchError struct {
	first error
	n     int
}

func (b *batchError) add(err error) {
	if b.n++; b.n == 1 {
		b.first = err
	}
}

func (b *batchError) join() error {
	if b.n > 1 {
		return fmt.Errorf("%w; and %d more in the same line", b.first, b.n-1)
	}
	return b.first
}

// eachRecord goes through a batch of OTLP. It reports whether it is one.
func eachRecord(batch json.RawMessage, take func(file, offset, message json.RawMessage)) bool {
	of := func(list json.RawMessage, name string, each func(json.RawMessage) bool) bool {
		return items(list, func(v json.RawMessage) bool {
			found, ok := members(v, name)
			return ok && each(found[0])
		})
	}
	return of(batch, "scopeLogs", func(scopes json.RawMessage) bool {
		return of(scopes, "logRecords", func(logs json.RawMessage) bool {
			return items(logs, func(log json.RawMessage) bool {
				found, ok := members(log, "body", "attributes")
				var file, offset json.RawMessage
				ok = ok && items(found[1], func(attribute json.RawMessage) bool {
					a, ok := members(attribute, "key", "value")
					v, _ := members(a[1], "stringValue", "intValue")
					switch text(a[0]) {
					case "log.file.path":
						file = v[0]
					case "log.file.record_offset":
						offset = v[1]
					}
					return ok
				})
				body, _ := members(found[0], "stringValue")
				if ok {
					take(file, offset, body[0])
				}
				return ok
			})
		})
	})
}

// recordOf reports whether the file is a chunk, and what its record says.
func recordOf(file string, offset, message json.RawMessage) (r Record, ours bool, err error) {
	name, ok := strings.CutSuffix(path.Base(file), ".ndjson")
	if _, _, valid := evidence.ParseChunkName(name); !ok || !valid {
		return r, false, nil
	}
	r.Chunk = name
	number := string(offset)
	if s := text(offset); s != "" {
		number = s
	}
	if r.Offset, err = strconv.ParseInt(number, 10, 64); err != nil || r.Offset < 0 {
		return r, true, fmt.Errorf("chunk %s: the offset is %.40q: the shipper has to say where a line begins", name, number)
	}
	r.Line = text(message)
	switch {
	case r.Line == "":
		return r, true, fmt.Errorf("chunk %s, offset %d: no message, or not a text", name, r.Offset)
	case len(r.Line) >= evidence.MaxLineBytes:
		return r, true, fmt.Errorf("chunk %s, offset %d: a line of %d bytes", name, r.Offset, len(r.Line))
	case r.Offset+int64(len(r.Line))+1 > evidence.MaxChunkBytes:
		return r, true, fmt.Errorf("chunk %s: a line at offset %d, behind the end of any chunk", name, r.Offset)
	case strings.IndexFunc(r.Line, func(c rune) bool { return c < ' ' }) >= 0:
		return r, true, fmt.Errorf("chunk %s, offset %d: a control character, which no line has", name, r.Offset)
	}
	return r, true, nil
}

// text returns a JSON string's text, "" for anything else.
func text(b json.RawMessage) string {
	var s string
	if len(b) == 0 || b[0] != '"' {
		return "" // what is no text takes nothing
	}
	if json.Unmarshal(b, &s) != nil {
		return ""
	}
	return s
}
