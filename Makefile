# `make quickstart` and `make test` need Python 3.11 or later with its venv module, and fetch the rest into .venv once.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
# A file goes to one process whole, so that what its tests share is made once; tests/conftest.py has their order.
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder
# Ten thousand modules are installed and a few thousand used; Python compiles those when it first imports them, and has to keep what it
# compiled: where containers tell it not to, each of the many processes would compile PyTorch anew.
INSTALL = $(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-compile -c constraints.txt

export OMP_NUM_THREADS ?= 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test check

quickstart: $(VENV)/.installed
	$(VENV)/bin/leafe run quickstart

# The checks run beside the tests: the longest of them, mypy, uses one core for half a minute.
test: $(VENV)/.installed-test
	@PYTHON=$(VENV)/bin/python scripts/check fast & checks=$$!; \
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS); tests=$$?; \
	wait $$checks && exit $$tests

check: $(VENV)/.installed-test
	PYTHON=$(VENV)/bin/python scripts/check

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "leafe needs Python 3.11 or later and found no '$(PYTHON)'; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "leafe needs Python 3.11 or later and '$(PYTHON)' is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; \
	  echo "Python's venv module is incomplete; on Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing leafe into $(VENV) (once; PyTorch is large, so this can take some minutes) ..."
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing leafe and its test tools into $(VENV) (once; PyTorch is large, so this can take some minutes) ..."
	@$(INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.installed
