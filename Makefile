# `make demo` and `make test` need python3 (3.11 or newer), make and PyPI; everything else is set up here.
# Other interpreter: `make PYTHON=python3.13 test`.  PostgreSQL for the tests: 18, or `make PG=16 test`, or a server of
# yours in MESSAGE_BUS_TEST_POSTGRESQL_URL (the tests make databases of their own there and drop them).

PYTHON ?= python3
PG ?= 18
JOBS ?= 2
TESTS ?= tests
ARGS ?=

VENV := .venv
VENV_SA20 := .venv-sa20
BIN := $(VENV)/bin
PYTEST_FLAGS := -q -n $(JOBS) --dist worksteal
BENCHES := tests.architecture.bench_import tests.messages.bench_codec tests.bus.bench_dispatch \
  tests.late_writing.bench_writing tests.relay.bench_relay tests.eventsourcing.bench_store
STORAGE_TESTS := $(wildcard tests/storage tests/late_writing tests/watermark tests/delivery tests/eventsourcing tests/demo)
EXTRAS := postgres,asyncpg,sqlite-async

export MESSAGE_BUS_TEST_PG_VERSION := $(PG)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-sa20 test-matrix faults load bench fast format unasync clean
.PHONY: check check-format check-lint check-twins check-imports check-mypy check-pyright

help:  ## Show this help
	@echo "message_bus: targets (TESTS=path and ARGS='-k name' choose tests, PG=16|18 the server, JOBS=n the processes)"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime  ## Run the demo: a small shop on SQLite
	$(BIN)/python -m message_bus.demo $(ARGS)

test: $(VENV)/.test  ## Run the whole suite on SQLite and a throw-away PostgreSQL
	$(BIN)/python -m pytest $(PYTEST_FLAGS) $(TESTS) $(ARGS)

test-sa20: $(VENV_SA20)/.test  ## Run the tests that touch a database, but for the slow ones, on SQLAlchemy 2.0
	$(VENV_SA20)/bin/python -m pytest $(PYTEST_FLAGS) -m "not slow and not faults and not load" $(STORAGE_TESTS) $(ARGS)

test-matrix: $(VENV)/.test  ## Run the suite on every Python 3.11-3.14 found here, each with SQLAlchemy 2.0 and 2.1
	$(BIN)/python tests/tools/matrix.py -- $(PYTEST_FLAGS) $(TESTS) $(ARGS)

faults: $(VENV)/.test  ## Kill processes and servers in the middle of work, many times
	$(BIN)/python -m pytest -m faults -s --timeout 1800 $(TESTS) $(ARGS)

load: $(VENV)/.test  ## Write and read at full speed for a while: nothing lost, nothing twice
	$(BIN)/python -m pytest -m load -s --timeout 1800 $(TESTS) $(ARGS)

bench: $(VENV)/.test  ## Measure against floors taken in the same run (BENCHES=module ARGS='...': one of them)
	@missed=0; for bench in $(BENCHES); do echo; echo "== $$bench"; $(BIN)/python -m $$bench $(ARGS) || missed=1; done; \
	  exit $$missed

check: check-format check-lint check-twins check-imports check-mypy check-pyright  ## All checks (-k: go on after one)

check-format: $(VENV)/.lint  ## Is all code formatted?
	$(BIN)/ruff format --quiet --check .

check-lint: $(VENV)/.lint  ## Does ruff find nothing?
	$(BIN)/ruff check .

check-twins: $(VENV)/.lint  ## Are the generated sync twins fresh?
	$(BIN)/python tests/tools/unasync.py --check

check-imports: $(VENV)/.lint  ## Do all arrows point inwards?
	$(BIN)/lint-imports

check-mypy: $(VENV)/.lint  ## Types, by mypy --strict
	$(BIN)/mypy

check-pyright: $(VENV)/.lint  ## Types, by pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs  ## Build the documentation into docs/_site; a warning is an error
	$(BIN)/python -m sphinx -b html -q -j auto -n -W --keep-going -d docs/_site/.doctrees docs docs/_site
	@echo "docs/_site/index.html"

fast: $(VENV)/.test  ## Run the tests that need no PostgreSQL and are not slow
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m "not postgresql and not slow and not faults and not load" $(TESTS) $(ARGS)

format: $(VENV)/.test  ## Format the code and repair what ruff can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

unasync: $(VENV)/.test  ## Generate the sync twins x.py from x_async.py
	$(BIN)/python tests/tools/unasync.py

clean:  ## Remove environments, caches and build results
	rm -rf .venv .venv-sa20 .venv-matrix build dist docs/_site \
	  .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments: a stamp is as old as the pyproject.toml that it was made from -------------------------------------

$(VENV)/.made $(VENV_SA20)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11 (name another one: make PYTHON=python3.12)"; exit 1; }
	$(PYTHON) -m venv $(@D) || { echo "no venv (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	$(@D)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.runtime: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]" --group test
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --group lint
	@touch $@

$(VENV)/.docs: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

$(VENV_SA20)/.test: $(VENV_SA20)/.made pyproject.toml
	$(@D)/bin/python -m pip install --quiet --editable ".[$(EXTRAS)]" --group test "sqlalchemy<2.1"
	@touch $@
