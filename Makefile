# Every command a developer or CI types. A fresh machine needs Python 3.10+ with venv, and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
REMOTE ?= local
# Test processes; each has servers of its own.
WORKERS ?= 2
# The system's certificates, as pip and browsers use them: a company's proxy has its own. (The second is for older uv.)
export UV_SYSTEM_CERTS := 1
export UV_NATIVE_TLS := 1

.PHONY: browser demo test lint docs bench crash package-check sbom clean

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

# One stamp per set of extras: reinstalled when pyproject.toml changes.
$(VENV)/.demo: pyproject.toml | $(BIN)/uv
	$(UV) -e ".[demo,cloud]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/uv
	$(UV) -e ".[test]"
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: pyproject.toml | $(BIN)/uv
	$(UV) -e ".[bench]"
	@touch $@ $(VENV)/.test $(VENV)/.demo

# An environment of its own: what releases need is no part of what tests see.
build/release/.done: pyproject.toml | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) build/release
	$(BIN)/uv pip install --quiet --python build/release -e ".[release,cloud]"
	@touch $@

$(VENV)/.browser: $(VENV)/.test
	$(UV) -e ".[browser]"
	@touch $@

demo: $(VENV)/.demo  ## train, kill -9, resume by name elsewhere, pull, verify. REMOTE=local|s3|gcs
	$(BIN)/python examples/demo.py --remote $(REMOTE)

test: $(VENV)/.test lint  ## everything, against real servers on loopback
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.test  ## the documentation as a site, into build/site; warnings are errors (a test builds it too)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

bench: $(VENV)/.bench  ## figures into benchmarks/results/
	$(BIN)/python -m benchmarks

browser: $(VENV)/.browser  ## the local page in a real Chromium; pictures into build/ui/
	$(BIN)/python -m pytest -m browser

crash: $(VENV)/.test  ## the long fault runs, with their figures
	$(BIN)/python -m pytest -m crash -s --timeout 0

package-check: build/release/.done  ## wheel and sdist, and each extra of it in a fresh environment. PYTHONS="3.10 3.13"
	build/release/bin/python .ci/package_check.py --python $(PYTHONS)

sbom: build/release/.done  ## what `pip install artifactsync[all]` brings, as CycloneDX, into dist/
	build/release/bin/python .ci/sbom.py

clean:
	@[ ! -d .cloud ] || $(BIN)/python localstack/cloud.py down
	rm -rf $(VENV) .demo .cloud build dist
