# make demo    train an SE network and its plain twin on real digits, and see the two side by side
# make test    lint, types, import layers and the test suite
# make test-browser    the page of `senet inspect` in Chromium (apt install chromium chromium-driver)
# make test-slow    what takes longer, and the property tests with new examples each time
# All set up .venv on their first run and reuse it afterwards.

PYTHON ?= python3
VENV := .venv
# The runtimes that exported files run in start threads and libraries of their own: their tests get
# processes of their own, for beside the others a worker of the suite once in a while died.
EXPORTS := tests/test_exchange.py tests/test_export_command.py tests/test_profiles.py
BIN := $(VENV)/bin
# What is compiled once need not be again, in each of the processes that tests start.
export PYTHONDONTWRITEBYTECODE :=
# In the order of their names: by default a file of few tests comes last, and those of few are long.
IN_TURN := -n 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-browser lint clean

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "senet needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) -m venv failed; on Debian: apt install python3-venv" >&2; exit 1; }

# A stamp is touched last, so that an interrupted install is taken up again.
$(VENV)/.package: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.package
	$(BIN)/python tools/demo.py

test: lint
	$(BIN)/python -m pytest $(IN_TURN) $(addprefix --ignore=,$(EXPORTS))
	$(BIN)/python -m pytest $(IN_TURN) $(EXPORTS)

test-browser: $(VENV)/.dev
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null || { \
	  echo "make test-browser needs Chromium and its driver; on Debian: apt install chromium chromium-driver" >&2; exit 1; }
	$(BIN)/python -m pytest -m browser tests/browser

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'slow or hypothesis' --hypothesis-profile=default

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A wheel, installed alone into an empty folder, works from another directory.
.PHONY: wheel
wheel: $(VENV)/.dev
	rm -rf dist build/wheel && $(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(BIN)/pip install --quiet --no-deps --target build/wheel dist/*.whl
	cd / && PYTHONPATH=$(CURDIR)/build/wheel $(CURDIR)/$(BIN)/python -m senet plan resnet18
