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

.PHONY: demo test lint bench crash clean

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

demo: $(VENV)/.demo  ## train, kill -9, resume by name elsewhere, pull, verify. REMOTE=local|s3|gcs
	$(BIN)/python examples/demo.py --remote $(REMOTE)

test: $(VENV)/.test lint  ## everything, against real servers on loopback
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.bench  ## figures into benchmarks/results/
	$(BIN)/python -m benchmarks

crash: $(VENV)/.test  ## the long fault runs, with their figures
	$(BIN)/python -m pytest -m crash -s --timeout 0

clean:
	@[ ! -d .cloud ] || $(BIN)/python localstack/cloud.py down
	rm -rf $(VENV) .demo .cloud build dist
