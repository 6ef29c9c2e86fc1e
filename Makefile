# `make help` lists what there is. The work is in scripts/, which handle the
# PATH and HOME that sudo leaves.

RUNTIME ?= podman
OUT ?=
PARTS ?=
FOR ?= 2h
SEED ?= 1

.PHONY: all generate check test test-kernels test-full bench soak demo rpm clean help

all: ## build bin/probity and bin/probity-hook
	@scripts/build.sh

generate: ## compile the BPF programs (needs exactly Debian 12's clang-14)
	@scripts/generate.sh

check: ## gofmt, vet, generated objects, shell, unit file, import policy, linter
	@scripts/check.sh

test: ## all tests; as root those with real runtimes too (sudo make test)
	@scripts/test.sh

test-kernels: ## the engine in Debian's kernels, booted in QEMU; writes docs/kernels.md
	@scripts/test-kernels.sh

test-full: ## everything, for hours: race detector, fuzzing, all tests, all kernels ([PARTS="race fuzz"])
	@scripts/test.sh full $(PARTS)

bench: ## measure the budgets of docs/design.md (sudo make bench)
	@scripts/bench.sh

soak: ## containers for two hours, and what befalls them; writes docs/soak.md (sudo make soak [FOR=20m] [SEED=7])
	@scripts/soak.sh '$(FOR)' '$(SEED)'

demo: ## a container, its probes, its evidence (sudo make demo [RUNTIME=containerd] [OUT=DIR])
	@scripts/demo.sh '$(RUNTIME)' '$(OUT)'

rpm: ## build one RPM into bin/rpm
	@scripts/rpm.sh

clean: ## remove what was built
	@rm -rf bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
