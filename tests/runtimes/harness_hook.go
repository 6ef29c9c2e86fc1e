package runtimes

import (
	"encoding/json"
	"fmt"
	"os"
)

// hookFile returns the text of a packaged hook file with another program, and
// the agent's socket as an argument.
func hookFile(name, program, socket string) (string, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	var file map[string]any
	if err := json.Unmarshal(b, &file); err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	hook, _ := file["hook"].(map[string]any)
	args, _ := hook["args"].([]any)
	if len(args) != 2 {
		return "", fmt.Errorf("read %s: hook.args is %v, want the name and the stage", name, hook["args"])
	}
	hook["path"] = program
	hook["args"] = append(args, "--socket", socket)
	b, err = json.MarshalIndent(file, "", "  ")
	if err != nil {
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	return string(b), nil
}
