package kernel

import _ "embed"

//go:embed subject_amd64.bin
var subjectELF []byte
