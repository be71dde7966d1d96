# Everything a developer runs; CI calls the same targets. `make help` is the menu.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check bench rivals proto proto-check dist clean tools venv

PYTHON := .venv/bin/python
SETUP := deploy/dev/setup.sh
# A Go that fits comes first; the built programs come last, so that the host's own keep their names.
export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/.tools/go:$(PATH):$(CURDIR)/.tools/bin
# Arguments for pytest, `fastpull demo` and the benchmarks: make test ARGS="-k registry"
ARGS ?=

help: ## show this menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

tools: ## set up packages, .venv and .tools (quick when nothing is missing)
	@$(SETUP) all

venv: ## set up .venv alone (no root needed)
	@$(SETUP) venv

demo: tools ## start a real image both ways behind a 1 Gbit/s link; writes demo-results/
	fastpull demo --cache-dir .tools/demo $(ARGS)

test: tools ## run all tests (root; about 15 minutes)
	$(PYTHON) -m pytest $(ARGS)

check: venv ## linters and types, as the tests run them
	ruff check .
	ruff format --check .
	mypy

bench: tools ## compare with overlayfs; writes bench-results/
	$(PYTHON) -m tests.bench $(ARGS)

rivals: tools ## build other lazy snapshotters for `make bench` to start too (10 minutes of CPU)
	@$(SETUP) rivals

proto: venv ## generate the gRPC stubs from proto/
	$(PYTHON) proto/generate.py

proto-check: venv ## fail if the committed stubs differ from proto/
	$(PYTHON) proto/generate.py --check

dist: venv ## build the wheel into dist/
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove what builds and tests wrote (keeps .venv and .tools)
	rm -rf build dist demo-results bench-results .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./.tools -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
