package guest

// Result is what a conformance run found for one probe type.
type Result struct {
	Name      string `json:"name"` // the probe type, or what is special
	ProbeType string `json:"probeType"`
	// Works: armed, and the count was exactly what was made to happen.
	Works bool `json:"works"`
	// Used is the probe type that the kernel really served it with.
	Used         string `json:"used,omitempty"`
	Mechanism    string `json:"mechanism,omitempty"`
	Reason       string `json:"reason,omitempty"` // why it does not work
	CountsMisses bool   `json:"countsMisses"`
	Happened     uint64 `json:"happened"`
	Counted      uint64 `json:"counted"`
}

// Check is what a conformance run found of one promise that is not about a
// probe type.
type Check struct {
	Name  string `json:"name"`
	Works bool   `json:"works"`
	// Used is the probe type that sees it, of what is seen in different ways.
	Used   string `json:"used,omitempty"`
	Reason string `json:"reason,omitempty"` // why it does not work
}

// Sites is what a conformance run found of many uprobes in one file.
type Sites struct {
	Asked    int     `json:"asked"`
	Armed    int     `json:"armed"`
	Most     int     `json:"most"`     // of one container, enforced: 0 if Asked was not enough to meet it
	AttachMs float64 `json:"attachMs"` // all that were armed
	DetachMs float64 `json:"detachMs"`
	// BesidesMs is how long it took to attach one site of another engine while
	// these were taken away.
	BesidesMs float64 `json:"besidesMs"`
}

// Report is the standard output of a conformance run, as JSON.
type Report struct {
	Results []Result `json:"probeTypes"`
	Checks  []Check  `json:"checks"`
	Sites   Sites    `json:"sites"`
}
