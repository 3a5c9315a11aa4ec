# The verbs of this repository. Each makes what it needs, on a machine that has only Python 3.11 or newer.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
FLOOR_VENV := .venv-floor
# The oldest transformers claimed: the lower bound in pyproject.toml, so the two cannot differ.
FLOOR := $(shell sed -n 's/^ *"transformers>=\([0-9.]*\)",$$/\1/p' pyproject.toml)
# Each worker computes on one thread; more would fight for the cores.
WORKERS ?= 2
# What `make demo` looks into.
DEMO := def add(self, other):\n    return self
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format assets test-floor

help: ## show these verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

venv: $(VENV)/.installed ## make .venv and install the package with its development tools

demo: venv ## run the bundled model, find a circuit in it, write it as demo.html
	$(VENV)/bin/gossamer attribute "$(DEMO)" --verify 200 --html demo.html

test: venv ## run the whole test suite (options: ARGS="-k sites")
	$(TEST_ENV) $(VENV)/bin/python -m pytest -n $(WORKERS) $(ARGS)

lint: venv ## check style, formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: venv ## format the code and mend what ruff can mend
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

assets: venv ## make the bundled model, SAEs and labels again (hours)
	$(VENV)/bin/python recipes/pico_python/make_assets.py

test-floor: $(FLOOR_VENV)/.installed ## run the tests marked `floor` with the oldest transformers claimed
	$(TEST_ENV) $(FLOOR_VENV)/bin/python -m pytest -m floor

# The stamps are newer than what they were installed from; a change there installs again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev,browser]'
	@touch $@

$(FLOOR_VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(FLOOR)" || { echo 'No line "transformers>=…", in pyproject.toml.'; exit 1; }
	@test -x $(FLOOR_VENV)/bin/python || $(PYTHON) -m venv $(FLOOR_VENV)
	$(FLOOR_VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]' 'transformers==$(FLOOR)'
	@touch $@
