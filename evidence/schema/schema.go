// Package schema holds the JSON Schemas (draft 2020-12) of the evidence format:
// one for each kind of line, one for the statement, one for the envelope.
//
// In: nothing. Out: the schemas' bytes. They say the same as FORMAT.md and as
// evidence.Validate, to programs in other languages; a test holds the three
// together. They are not a control: a schema sees neither the order of members
// nor the spelling of a value, and no signature.
package schema

import "embed"

// FS holds NAME.json for each of Names.
//
//go:embed *.json
var FS embed.FS

// Names lists the schemas.
var Names = []string{"header", "coverage", "observation", "gap", "statement", "envelope"}
