# mimkit on a fresh machine: `make demo` to see it work, `make test` to check it. `make help` lists the rest.
#
# Everything is installed into .venv. One stamp file an extra records a finished installation, so a second call starts
# at once; a stamp is written only after pip has succeeded, so an interrupted installation is taken up again.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
BIN    := $(VENV)/bin
PY     := $(BIN)/python
PIP    := $(PY) -m pip --disable-pip-version-check
WHAT   := pyproject.toml constraints.txt
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-slow lint no-count-roots bench docs docs-serve clean distclean

help:
	@echo "make demo        pre-train a small MAE on photographs that ship with scikit-image and look inside (minutes)"
	@echo "make test        run the tests, a worker a core       (ARGS='tests/data -x' goes to pytest)"
	@echo "make test-slow   run the honest long runs             (ARGS as above)"
	@echo "make lint        style, layers, types, docs"
	@echo "make bench       ours against theirs                  (ARGS='import --quick' goes to python -m benchmarks)"
	@echo "make docs        build the documentation into site/   (make docs-serve: read it while writing)"
	@echo "make venv        only make $(VENV)                     (PYTHON=python3.12 picks the interpreter)"
	@echo "make clean       remove caches and built documentation; make distclean removes $(VENV) too"

# ---- installation

venv: $(VENV)/.stamp-venv

# A working .venv is kept, a missing or half-made one is made anew.
$(VENV)/.stamp-venv:
	@$(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  command -v $(PYTHON) >/dev/null || { \
	    echo "mimkit needs Python 3.11 or later, but '$(PYTHON)' is not on the path: install it (Debian, Ubuntu: apt" \
	         "install python3 python3-venv) or name yours: make PYTHON=python3.12 ..." >&2; exit 2; }; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "mimkit needs Python 3.11 or later, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1): install a newer one and" \
	         "name it: make PYTHON=python3.12 ..." >&2; exit 2; }; \
	  $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo "mimkit is installed into $(VENV), but '$(PYTHON)' has no venv module: install it (Debian, Ubuntu: apt" \
	         "install python3-venv) and call make again." >&2; exit 2; }; \
	  echo "$(PYTHON) -m venv $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@touch $@

$(VENV)/.stamp-demo: $(WHAT) | $(VENV)/.stamp-venv
	$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.stamp-dev: $(WHAT) | $(VENV)/.stamp-venv
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.stamp-demo $@    # dev holds demo

# ---- use

demo: $(VENV)/.stamp-demo
	$(BIN)/mimkit demo $(ARGS)

test: $(VENV)/.stamp-dev
	$(PY) -m pytest -n auto --dist worksteal $(ARGS)

test-slow: $(VENV)/.stamp-dev
	$(PY) -m pytest -m slow $(ARGS)

bench: $(VENV)/.stamp-dev
	$(PY) -m benchmarks $(ARGS)

lint: $(VENV)/.stamp-dev no-count-roots
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(BIN)/lint-imports
	$(PY) -m mypy
	$(PY) -m mkdocs build --strict --quiet

# A grid comes from the input, never from the root of a count: 8 x 32 patches are as many as 16 x 16.
no-count-roots:
	@! grep -rnE --include='*.py' \
	  'int\([^()]*\*\* *(0?\.5|\(1 */ *2\))|int\((math|np|numpy|torch)\.sqrt\(|isqrt\(|\.sqrt\(\)\.(int|long)\(' src \
	  || { echo "The lines above take the square root of a count; carry (height, width) instead." >&2; exit 1; }

docs: $(VENV)/.stamp-dev
	$(PY) -m mkdocs build --strict

docs-serve: $(VENV)/.stamp-dev
	$(PY) -m mkdocs serve

clean:
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
