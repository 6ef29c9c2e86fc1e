package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// ErrNewer is wrapped when a header names a format that this package does not
// know: the file may well be sound, but somebody else has to say so.
var ErrNewer = errors.New("made by a newer version")

// Decode reads one line between header and envelope, without its newline. It
// takes exactly what Encode writes: a nil error means that encoding the result
// gives the same bytes. It does not say that the line makes sense: see
// Validate. The result's texts are parts of line and keep it in memory.
func Decode(line string) (Line, error) {
	if len(line) >= MaxLineBytes {
		return nil, fmt.Errorf("%d bytes, a line has at most %d", len(line), MaxLineBytes-1)
	}
	var l Line
	var sh *shape
	switch {
	case strings.HasPrefix(line, `{"kind":"`+KindObservation+`"`):
		o := new(Observation)
		if quickObservation(line, o) {
			return o, nil
		}
		l, sh = new(Observation), observationShape
	case strings.HasPrefix(line, `{"kind":"`+KindCoverage+`"`):
		l, sh = new(Coverage), coverageShape
	case strings.HasPrefix(line, `{"kind":"`+KindGap+`"`):
		l, sh = new(Gap), gapShape
	default:
		return nil, explainKind(line)
	}
	if err := decodeCanonical(line, sh, reflect.ValueOf(l).Elem()); err != nil {
		return nil, explain(line, l, err)
	}
	return l, nil
}

// DecodeHeader reads a header line, without its newline. It takes exactly what
// EncodeHeader writes; a header of another format is ErrNewer.
func DecodeHeader(line string) (Header, error) {
	var h Header
	if len(line) >= MaxLineBytes {
		return h, fmt.Errorf("%d bytes, a line has at most %d", len(line), MaxLineBytes-1)
	}
	var claim struct{ Kind, Format string }
	if err := json.Unmarshal([]byte(line), &claim); err != nil {
		return h, fmt.Errorf("not a JSON object: %w", err)
	}
	switch {
	case claim.Kind != KindHeader:
		return h, fmt.Errorf("the kind is %q, a chunk begins with a %s line", clip(claim.Kind), KindHeader)
	case newer(claim.Format):
		return h, fmt.Errorf("%w: format %q is not known to this verifier, which knows %s", ErrNewer, clip(claim.Format), strings.Join(Formats, " and "))
	case !slices.Contains(Formats, claim.Format):
		return h, fmt.Errorf("the format %q is not one of %s", clip(claim.Format), strings.Join(Formats, ", "))
	}
	if err := decodeCanonical(line, headerShape, reflect.ValueOf(&h).Elem()); err != nil {
		return h, explain(line, new(Header), err)
	}
	if again, err := EncodeHeader(h); err != nil {
		return h, err
	} else if string(again) != line {
		return h, errors.New("the padding is not what the format asks for")
	}
	return h, nil
}

// newer reports whether format is a later version than those that are known.
func newer(format string) bool {
	digits, ok := strings.CutPrefix(format, "probity-chunk/")
	n, err := strconv.ParseUint(digits, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return ok
	}
	return ok && err == nil && digits[0] != '0' && n > uint64(len(Formats))
}

// DecodeStatement reads the payload of an envelope. It takes exactly what
// EncodeStatement writes.
func DecodeStatement(payload string) (Statement, error) {
	var s Statement
	if err := decodeCanonical(payload, statementShape, reflect.ValueOf(&s).Elem()); err != nil {
		return s, explain(payload, new(Statement), err)
	}
	return s, nil
}

func explainKind(line string) error {
	var claim struct{ Kind *string }
	switch err := json.Unmarshal([]byte(line), &claim); {
	case line == "":
		return errors.New("the line is empty")
	case err != nil:
		return fmt.Errorf("not a JSON object: %w", err)
	case claim.Kind == nil:
		return errors.New("the line has no kind")
	}
	switch k := *claim.Kind; k {
	case KindObservation, KindCoverage, KindGap:
		return errors.New("not in canonical form: byte 1: want {\"kind\":\"" + k + "\"")
	case KindHeader:
		return errors.New("a second header line")
	default:
		return fmt.Errorf("the kind %q is not known", clip(k))
	}
}

// explain says in a reader's words why a line was not taken: that it is no
// JSON, that a member is wrong, or only that its spelling is not canonical.
func explain(line string, into any, canonical error) error {
	if !json.Valid([]byte(line)) {
		var any any
		if err := json.Unmarshal([]byte(line), &any); err != nil {
			return fmt.Errorf("not JSON: %w", err)
		}
	}
	dec := json.NewDecoder(bytes.NewReader([]byte(line)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	return fmt.Errorf("not in canonical form: %w", canonical)
}
