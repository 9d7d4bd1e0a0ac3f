# clipray: every command sets up what it needs. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo submit test lint bench constraints

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first Python ≥ 3.11 that can make a virtual environment; `make PYTHON=/path/to/python3.12 setup` overrules.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
endif

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## make .venv with the pinned versions of constraints.txt (done by the other targets when needed)

# Compiled once here, for each worker process of Ray imports torch anew: 2 s with bytecode, 4 s without.
$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
		[ -n "$(PYTHON)" ] || { echo "clipray needs Python 3.11 or newer with the venv module (on Debian: apt install python3 python3-venv)." \
			"Install one, or name it: make PYTHON=/path/to/python3.12 $(or $(MAKECMDGOALS),setup)" >&2; exit 1; }; \
		echo "making $(VENV) with $(PYTHON)" >&2; "$(PYTHON)" -m venv $(VENV); \
	fi
	@uv="$$(command -v $(abspath $(BIN))/uv || command -v uv || true)"; \
	if [ -z "$$uv" ]; then $(BIN)/python -m pip install --quiet uv && uv=$(BIN)/uv; fi; \
	"$$uv" pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## five shipped backbones over small bundled datasets: offline, 2 CPU cores, ≤ 5 minutes
	@$(BIN)/python -m jobs.run configs/demo.yaml | $(BIN)/python -c 'import json, sys; \
		made = json.loads(sys.stdin.read().splitlines()[-1]); \
		print("\nThe report, with every figure, is one page; open it in a browser:\n    " + made["report"]); \
		print("Every run with its parameters and metrics, in MLflow; start it and open http://127.0.0.1:5000 :\n" \
			"    $(BIN)/" + made["mlflow"]["open"])'

submit: $(STAMP)  ## send a job to a Ray cluster: make submit CONFIG=my.yaml [JOB=tune] (RAY_ADDRESS=http://head:8265)
	@$(BIN)/python -m jobs.submit $(CONFIG) --job $(or $(JOB),run)

test: $(STAMP)  ## the whole test suite
	@$(BIN)/python -m pytest --durations=10

lint: $(STAMP)  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

bench: $(STAMP)  ## each script of benchmarks/ in turn, without the faults of chaos.py, which take an hour
	@shopt -s nullglob; for script in $(filter-out benchmarks/chaos%,$(wildcard benchmarks/*.py)); do echo "$$script"; $(BIN)/python "$$script"; done

# Keeps every version that constraints.txt already pins; delete a line (or the file) to let it move.
constraints: $(STAMP)  ## compile constraints.txt, and the cluster's with hashes, anew from pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null; uv="$$(command -v $(abspath $(BIN))/uv || command -v uv)"; \
	"$$uv" pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links pyproject.toml -o constraints.txt; \
	"$$uv" pip compile --quiet --generate-hashes --python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-header \
		--no-annotate --no-emit-index-url --no-emit-find-links -c constraints.txt pyproject.toml -o configs/cluster-requirements.txt
