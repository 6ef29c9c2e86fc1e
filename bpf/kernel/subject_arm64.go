package kernel

import _ "embed"

//go:embed subject_arm64.bin
var subjectELF []byte
