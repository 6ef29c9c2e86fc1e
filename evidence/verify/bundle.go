package verify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"probity/evidence/sign"
)

// bundleMediaType is version 0.3 of the Sigstore bundle.
const bundleMediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// bundle is as much of a Sigstore bundle as a chunk needs: no certificate and no
// transparency log, only which key.
type bundle struct {
	MediaType            string `json:"mediaType"`
	VerificationMaterial struct {
		PublicKey struct {
			Hint string `json:"hint"`
		} `json:"publicKey"`
	} `json:"verificationMaterial"`
	DSSEEnvelope sign.Envelope `json:"dsseEnvelope"`
}

// Bundle returns a sound chunk as a Sigstore bundle, for standard verifiers; what
// they verify it against is c.Body.
func Bundle(c *Chunk) ([]byte, error) {
	var b bundle
	b.MediaType = bundleMediaType
	b.VerificationMaterial.PublicKey.Hint = c.Header.KeyID
	if err := json.Unmarshal(c.Envelope, &b.DSSEEnvelope); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(b); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// WriteBundle writes NAME.blob and NAME.sigstore.json of a sound chunk to dir,
// which it makes if it is not there. A file that is there is replaced.
func WriteBundle(dir string, c *Chunk) error {
	b, err := Bundle(c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := replace(filepath.Join(dir, c.Header.Chunk+".blob"), c.Body); err != nil {
		return err
	}
	return replace(filepath.Join(dir, c.Header.Chunk+".sigstore.json"), b)
}

// replace never leaves half of a file under path.
func replace(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
