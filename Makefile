# Every target sets up .venv by itself; all it needs is a Python >= 3.11 (make PYTHON=... names one).
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PYTHON ?=
# processes that share the tests
WORKERS ?= 2
# the browser that tests/browser opens reports in
CHROMIUM ?= chromium
# the environment of the NDIF server that tests/remote starts
NDIF := .ndif/server

# More than one thread loses badly when the cores are shared; raise it on an idle machine.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export MPLBACKEND := Agg
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-ndif test-report redis chromium test-families docs lint format types check presets findings \
  figures bench train clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

demo: $(STAMP)  ## run experiments/demo.py
	$(BIN)/python experiments/demo.py

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest tests -n $(WORKERS) --dist loadfile

test-ndif: $(STAMP) redis  ## run the tests that need a real NDIF server, on this machine
	$(BIN)/python -c "from pathlib import Path; from vlm_patching.serving import build_environment as b; b(Path('$(NDIF)'))"
	VLM_PATCHING_NDIF=$(NDIF) $(BIN)/python -m pytest tests/remote

test-report: $(STAMP) chromium  ## open reports in a headless Chromium
	chromium="$$(command -v $(CHROMIUM))" && VLM_PATCHING_CHROMIUM="$$chromium" $(BIN)/python -m pytest tests/browser

redis:
	@command -v redis-server >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && apt-get install -y -q redis-server; \
	  else \
	    echo "error: redis-server is missing: install it (apt-get install redis-server, brew install redis)" >&2; \
	    exit 1; \
	  fi; \
	}

chromium:
	@command -v $(CHROMIUM) >/dev/null && command -v chromedriver >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && apt-get install -y -q chromium chromium-driver; \
	  else \
	    echo "error: chromium or chromedriver is missing: install both (apt-get install chromium chromium-driver)," >&2; \
	    echo "or name the browser: make test-report CHROMIUM=google-chrome" >&2; \
	    exit 1; \
	  fi; \
	}

test-families: $(STAMP)  ## hold every model family against plain hooks, and write docs/models.md
	mkdir -p build
	$(BIN)/python -m pytest tests/families -n $(WORKERS) --dist loadfile --junitxml build/families.xml
	$(BIN)/python -m tests.families.page build/families.xml

docs: $(STAMP)  ## build the documentation into build/site; a warning is an error, and nothing is fetched
	$(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python -m docs.tools.offline build/site

lint: $(STAMP)  ## ruff check
	$(BIN)/ruff check .

format: $(STAMP)  ## sort imports and reformat
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

check: lint  ## lint, format check and types
	$(BIN)/ruff format --check .
	$(MAKE) types

presets: $(STAMP)  ## run every preset on the bundled models
	$(BIN)/python experiments/all_presets.py

findings: $(STAMP)  ## run every preset and write docs/findings.md
	$(BIN)/python experiments/findings.py

figures: $(STAMP)  ## draw docs/figures.md
	$(BIN)/python experiments/figures_page.py

bench: $(STAMP)  ## time the engine against the naive loop
	$(BIN)/python benchmarks/run.py

train: $(STAMP)  ## train the bundled models from nothing
	$(BIN)/python experiments/shapes/train.py

clean:  ## remove caches and builds (not .venv, not results)
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A usable .venv is kept, any other is made anew. torch goes first, so that the build it comes in is settled before
# anything that depends on it is resolved.
$(STAMP): constraints.txt pyproject.toml
	@if ! $(BIN)/python -c "import sys, pip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then \
	  for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	    if "$$python" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then \
	      echo "$$python -m venv $(VENV)"; exec "$$python" -m venv --clear $(VENV); \
	    fi; \
	  done; \
	  echo "error: no Python >= 3.11 with the venv module found: install one, or name it: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,docs]'
	@touch $@
