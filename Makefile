# The developer's and operator's loop. `make demo` is the place to begin.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null && \
	$$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info < (3,14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
TESTS ?= tests

.PHONY: help demo up down test audit client lint format bench-api bench-edge bench-fair bench-launch bench-commit bench-history bench-scale bench-claim bench-match lock migrations-check chaos soak

help:  ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(STAMP)  ## Start the fleet, upload the demo game, start a server and play one packet
	@$(BIN)/fleet up && $(BIN)/fleet demo

up: $(STAMP)  ## Start the fleet in the background
	@$(BIN)/fleet up

down:  ## Stop everything that was started here
	@if [ -x $(BIN)/fleet ]; then $(BIN)/fleet down; else echo "Nothing is installed here, so nothing runs."; fi

lint: $(STAMP)  ## Style, types, the one-way arrows, migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/python -m fleet.ops.check_migrations

format: $(STAMP)  ## Bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

client: $(STAMP)  ## Generated parts of fleet/client: models from our OpenAPI, the sync client from the async one
	@$(BIN)/python -m scripts.make_client

audit: $(STAMP)  ## Known vulnerabilities of the pinned dependencies; says so where nobody can be asked
	@$(BIN)/python -m fleet.ops.audit requirements.lock

test: lint audit  ## Everything: lint, then all tests with a real engine and a real fleet
	$(BIN)/python -m fleet.ops.ensure_engine
ifeq ($(TESTS),tests)
	@failed=; $(BIN)/pytest -n auto tests/unit tests/simulation || failed=unit; \
	$(BIN)/pytest tests --ignore=tests/unit --ignore=tests/simulation || failed="$$failed rest"; \
	test -z "$$failed" || { echo "failed: $$failed"; exit 1; }
else
	$(BIN)/pytest $(TESTS)
endif

soak: $(STAMP)  ## The simulation with faults over 100,000 seeds, continued where it was left (SEEDS= FROM= JOBS=)
	@$(BIN)/python -m tests.simulation.soak

# A benchmark asks with one key what many would: its fleet has a big customer's limits.
MANY = FLEET_LIMITS__READS_PER_S=100000 FLEET_LIMITS__WRITES_PER_S=100000

bench-api: $(STAMP)  ## Requests per second and latencies of the API
	@$(MANY) $(BIN)/fleet up && $(BIN)/python -m bench.api --home "$${FLEET_HOME:-.fleet}"

bench-edge: $(STAMP)  ## What the API's layers cost, noisy neighbours, long lists (--quick: ARGS=--quick)
	@$(BIN)/python -m bench.edge $(ARGS)

bench-fair: $(STAMP)  ## What a neighbour at 20 times its limits costs another project (ARGS=--quick)
	@$(BIN)/python -m bench.fair $(ARGS)

bench-launch: $(STAMP)  ## Time from a start request to a running game
	@$(MANY) $(BIN)/fleet up && $(BIN)/python -m bench.launch

bench-commit: $(STAMP)  ## Durable claims per second of a manager's group commit
	@$(BIN)/python -m bench.commit

bench-history: $(STAMP)  ## A million ended servers beside a new database: starts, claims, pages, start-up (ARGS=--servers 100000)
	@$(BIN)/python -m bench.history $(ARGS)

bench-claim: $(STAMP)  ## Claims of warm servers: in the manager, and through the whole stack (simulated nodes)
	@$(BIN)/python -m bench.claim

bench-lobby: $(STAMP)  ## Lobbies and tickets per second through the keeper, and how soon a match is made
	@$(BIN)/python -m bench.lobby

bench-sse: $(STAMP)  ## Until another player sees a change, with 1,000 streams open (--quick: ARGS=--quick)
	@$(BIN)/python -m bench.sse $(ARGS)

bench-scale: $(STAMP)  ## 10,000 servers on 200 simulated nodes
	@$(BIN)/python -m bench.scale_plan
	@$(BIN)/python -m bench.scale

bench-pool: $(STAMP)  ## The pool policy against others, in virtual time (--quick: ARGS=--quick)
	@$(BIN)/python -m bench.pool $(ARGS)

CHAOS ?= --faults 500

chaos: $(STAMP)  ## A thousand real faults under load, on SQLite and PostgreSQL: hours (less: CHAOS="--faults 50")
	@folder=$$(mktemp -d); for database in sqlite postgres; do \
	$(BIN)/python -m tests.chaos.storm --database $$database --results $$folder $(CHAOS) || true; done; \
	$(BIN)/python -m tests.chaos.storm --report $$folder/*.json

bench-match: $(STAMP)  ## The matcher: a pass over 100,000 waiting tickets, arriving tickets' attempts (ARGS=--quick)
	@$(BIN)/python -m bench.matchmaking $(ARGS)

lock:  ## Pin every dependency, with hashes, from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --group dev --python-version 3.11 --universal --generate-hashes \
		--no-emit-index-url --no-header -o requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@PY="$(PY)" bash scripts/bootstrap.sh
	@touch $@
