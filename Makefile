# SAMtune: `make results` runs the quick profile, `make test` checks everything. Needs Python 3.11+ and make, no more.
PROFILE ?= quick
# The first of these that runs, is new enough and can make a virtual environment. Name another: make PYTHON=/path/to/python3
PYTHON ?= python3.11 python3.12 python3
BIN := .venv/bin
# Two pytest workers with one thread each: as fast as two cores go, and no worker waits for the other's threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

.PHONY: help setup results test lab clean

help:
	@echo "make results [PROFILE=quick]   run every notebook of a profile; prints the path of its report"
	@echo "make test                      ruff, the tests, and every notebook in the smoke profile"
	@echo "make lab                       open the notebooks in Jupyter Lab"
	@echo "make clean                     remove .venv, caches and results that are not committed"
	@echo "(each sets up .venv first where needed; 'make setup' does only that)"

# Set-up is due when the stamp differs from this folder and the contents of pyproject.toml and constraints.txt: contents,
# as git gives files new times; the folder, as a virtual environment cannot be moved (it is then made anew). Until all is
# installed the stamp names the folder only, so that a set-up that was broken off goes on where it was.
setup:
	@stamp="$$(pwd): $$(cat pyproject.toml constraints.txt | cksum)"; \
	found="$$(cat .venv/stamp 2>/dev/null)"; \
	case "$$found" in "$$stamp") exit 0;; "$$(pwd):"*|"") clear=;; *) clear=--clear;; esac; \
	for python in $(PYTHON); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then break; fi; \
	    python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "SAMtune needs Python 3.11 or newer with venv; none of these is: $(PYTHON)." \
	         "Install one, or name it: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "Setting up .venv with $$($$python --version): a few GB and minutes, once."; \
	$$python -m venv $$clear .venv && \
	echo "$$(pwd):" > .venv/stamp && \
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' && \
	echo "$$stamp" > .venv/stamp

results: setup
	@$(BIN)/samtune results --profile $(PROFILE)

test: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(PYTEST) --dist loadfile
	$(PYTEST) --nbval-lax --nbval-current-env --dist loadscope notebooks

# Containers run as root, which Jupyter wants to hear twice.
lab: setup
	$(BIN)/jupyter lab $$([ "$$(id -u)" != 0 ] || echo --allow-root) notebooks/

# results/cpu and results/gpu are committed work of hours: never removed.
clean:
	rm -rf .venv build dist lib/*.egg-info .pytest_cache .ruff_cache results/quick results/smoke results/your_data
	find lib tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
