# Everything runs in .venv, which `make setup` makes from the lock. PYTHON=python3.13 picks another Python.
PYTHON ?= python3
# Options for pytest and the bench: make test ARGS="tests/embedded -x", make bench ARGS="cpu --quick"
ARGS ?=
BIN = .venv/bin

.PHONY: setup demo test check bench format lock clean

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
