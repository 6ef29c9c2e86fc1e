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
// are valid also with an error, which is about others of the same batch.
func Parse(line []byte) (records []Record, others int, err error) {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(line, &top); err != nil {
		return nil, 0, fmt.Errorf("not a JSON object: %w", err)
	}
	if batch, ok := top["resourceLogs"]; ok {
		return parseOTLP(batch)
	}
	file, offset := text(top["file"]), top["offset"]
	if file == "" {
		var log struct {
			File   struct{ Path string }
			Offset json.RawMessage
		}
		if json.Unmarshal(top["log"], &log) == nil {
			file, offset = log.File.Path, log.Offset
		}
	}
	r, ours, err := recordOf(file, offset, top["message"])
	switch {
	case !ours:
		return nil, 1, nil
	case err != nil:
		return nil, 0, err
	}
	return []Record{r}, 0, nil
}

type value struct {
	StringValue json.RawMessage
	IntValue    json.RawMessage
}

func parseOTLP(batch []byte) (records []Record, others int, err error) {
	var resources []struct {
		ScopeLogs []struct {
			LogRecords []struct {
				Body       value
				Attributes []struct {
					Key   string
					Value value
				}
			}
		}
	}
	if err := json.Unmarshal(batch, &resources); err != nil {
		return nil, 0, fmt.Errorf("not a batch of OTLP: %w", err)
	}
	var errs []error
	for _, resource := range resources {
		for _, scope := range resource.ScopeLogs {
			for _, l := range scope.LogRecords {
				var file string
				var offset json.RawMessage
				for _, a := range l.Attributes {
					switch a.Key {
					case "log.file.path":
						file = text(a.Value.StringValue)
					case "log.file.record_offset":
						offset = a.Value.IntValue
					}
				}
				r, ours, err := recordOf(file, offset, l.Body.StringValue)
				switch {
				case !ours:
					others++
				case err != nil:
					errs = append(errs, err)
				default:
					records = append(records, r)
				}
			}
		}
	}
	return records, others, errors.Join(errs...)
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
	if json.Unmarshal(b, &s) != nil {
		return ""
	}
	return s
}
