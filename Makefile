# Everything runs in .venv, which `make setup` makes from the lock. PYTHON=python3.13 picks another Python.
PYTHON ?= python3
# Options for pytest and the bench: make test ARGS="tests/embedded -x", make bench ARGS="cpu --quick"
ARGS ?=
BIN = .venv/bin

.PHONY: setup demo test check bench faults faults-sync format lock clean

setup: .venv/.stamp

.venv/.stamp: requirements.lock pyproject.toml scripts/make_environment.py
	@$(PYTHON) scripts/make_environment.py

demo: setup
	@$(BIN)/crossfade demo $(ARGS)

test: setup
	@$(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	@$(BIN)/python -m bench $(ARGS)

# Some hundred cutovers with a fault in each; about 25 minutes. make faults RUNS=50 SEED=300 for others.
RUNS ?= 300
SEED ?= 0
faults: setup
	@CROSSFADE_FAULT_RUNS=$(RUNS) CROSSFADE_FAULT_SEED=$(SEED) $(BIN)/python -m pytest -s tests/cutover/test_faults.py

# Some hundred schedules of faults for the dual write, on servers of their own; about 15 seconds each.
# `make test` plays every fault once.
faults-sync: setup
	@CROSSFADE_FAULT_RUNS=$(RUNS) CROSSFADE_FAULT_SEED=$(SEED) $(BIN)/python -m pytest -s tests/dualwrite/faults

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Newest versions that pyproject.toml allows; `make lock ARGS=--upgrade-package=NAME` moves only one.
ARGS_LOCK = $(if $(ARGS),$(ARGS),--upgrade)
lock: setup
	@echo 'setuptools>=80' | $(BIN)/uv pip compile pyproject.toml - $(ARGS_LOCK) --quiet --no-config \
	  --universal --python-version 3.11 --all-extras --generate-hashes --no-header \
	  --no-emit-index-url --no-emit-find-links --output-file requirements.lock

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
