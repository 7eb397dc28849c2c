# make demo | test | lint | clean. Needs python3 >= 3.10, git and make; everything else goes into .venv, once.
PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
# Three processes of one thread each keep two cores busy while one waits for a command that it started; a file stays in
# one of them, because its tests share what they made.
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
# A mapped folder that appears or goes changes the map that an editable install holds.
MAPPED := $(wildcard plans/__init__.py dataset_conversion/__init__.py)

# Tests and demo run nnU-Net's commands by name; the environment's own must be the ones found.
export PATH := $(BIN):$(PATH)

.PHONY: demo test lint clean

demo: $(STAMP)
	@$(BIN)/ctnet demo $(DEMO_ARGS)

test: export OMP_NUM_THREADS := 1
test: export OMP_WAIT_POLICY := PASSIVE
test: $(STAMP)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $$($(PYTHON) -V 2>&1) is too old; ctnet_nnunet needs Python 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: $(PYTHON) cannot create $(VENV); install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }

# The tested setuptools goes in first and builds the project itself, so that the build needs no second download.
$(STAMP): $(VENV)/bin/python setup.py pyproject.toml constraints.txt $(MAPPED)
	@echo "installing into $(VENV) (several GB with torch; once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev,tensorboard]'
	@touch $@
