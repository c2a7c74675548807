# Shardledger on one machine. `make up` needs Rust and nothing else: it brings PostgreSQL where there is none.

DATA_DIR  ?= ./.shardledger
SHARDS    ?=
SEQUENCES ?= 10000
HISTORIES ?= 2000
MINUTES   ?= 10
TARGET    := $(or $(CARGO_TARGET_DIR),target)
SHARDCTL  := $(TARGET)/release/shardctl
SERVICES  := -p router -p shard-node -p ops
UP_FLAGS  := $(if $(SHARDS),--shards $(SHARDS))

# Tests find the services as they were just built.
TEST_SHARDCTL := $(TARGET)/debug/shardctl

CLIPPY        := cargo clippy --workspace --all-targets -- -D warnings

.DEFAULT_GOAL := help
.PHONY: help up down status test test-unit test-cluster model simulate upgrade-test broken-rules chaos chaos-selftest chaos-reshard chaos-sagas format lint configuration openapi metrics-reference bench bench-long soak reshard-demo release clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: release ## Start a cluster of 4 shards and 2 routers (DATA_DIR=…, SHARDS=…)
	@$(SHARDCTL) up --data-dir $(DATA_DIR) $(UP_FLAGS)

down: ## Stop it; the data stays (remove it with: target/release/shardctl down --wipe)
	@if [ -x $(SHARDCTL) ]; then $(SHARDCTL) down --data-dir $(DATA_DIR); \
	elif [ -e $(DATA_DIR)/cluster.json ]; then $(MAKE) --no-print-directory release && $(SHARDCTL) down --data-dir $(DATA_DIR); \
	else echo 'there is no cluster in $(DATA_DIR)' >&2; fi

status: ## Show what runs
	@$(SHARDCTL) status --data-dir $(DATA_DIR)

test: ## Run the lints, 20,000 simulated clusters and every test
	@tests/all.sh

# `make test` in two parts, which the GitHub workflow runs on two machines. A test that starts PostgreSQL belongs to the second part.
CLUSTER_TESTS := integration-tests pg-session
RUN_TESTS      = $(if $(shell cargo nextest --version 2>/dev/null),cargo nextest run,cargo test)

test-unit: lint ## Run the part of `make test` that needs no database: lints, simulation, unit tests
	@$(MAKE) --no-print-directory simulate SEEDS=20000
	$(RUN_TESTS) --workspace $(addprefix --exclude ,$(CLUSTER_TESTS))

test-cluster: ## Run the rest of it: the tests that start PostgreSQL, nodes and routers
	cargo build --workspace --bins
	@set -e; pg_bin=$$($(TEST_SHARDCTL) --data-dir $(TARGET)/test-postgresql postgres ensure); \
	export SHARDLEDGER_PG_BIN="$$pg_bin"; \
	SHARDLEDGER_PROMETHEUS_BIN="$$(tests/prometheus.sh $(TARGET)/test-prometheus)" || true; export SHARDLEDGER_PROMETHEUS_BIN; \
	echo '$(RUN_TESTS) $(addprefix -p ,$(CLUSTER_TESTS))'; $(RUN_TESTS) $(addprefix -p ,$(CLUSTER_TESTS))

# Many more random sequences than `make test` plays; SEED=… repeats a run.
model: ## Play SEQUENCES=… random sequences to a ledger in memory and to real nodes, and HISTORIES=… of concurrent requests
	cargo build --workspace --bins
	@set -e; pg_bin=$$($(TEST_SHARDCTL) --data-dir $(TARGET)/test-postgresql postgres ensure); \
	SHARDLEDGER_PG_BIN="$$pg_bin" SEQUENCES=$(SEQUENCES) HISTORIES=$(HISTORIES) \
	    cargo test -p integration-tests --test it -- --nocapture --test-threads 1 sequences::

# No database and no process takes part. A seed that fails prints its trace; SEED=… SEEDS=1 repeats it.
simulate: SEED ?= 1
simulate: SEEDS ?= 20000
simulate: ## Simulate SEEDS=20000 clusters under faults on virtual time, from SEED=1 on
	cargo build --workspace --bin simulate
	@$(TARGET)/debug/simulate --seed $(SEED) --seeds $(SEEDS)

# `make test` runs a sample. CELLS=release runs the cells of the steps whose names begin with release.
chaos-reshard: CELLS ?= all
chaos-reshard: ## Kill everything at every durable step of a move of slots (CELLS=…, SEED=…); about an hour
	cargo build --workspace --bins
	@set -e; pg_bin=$$($(TEST_SHARDCTL) --data-dir $(TARGET)/test-postgresql postgres ensure); \
	SHARDLEDGER_PG_BIN="$$pg_bin" CELLS=$(CELLS) \
	    cargo test -p integration-tests --test it -- --nocapture --test-threads 1 moves::crash_matrix::

# `make test` runs a sample. CELLS=settle runs the cells whose lines contain it; FROM=100 continues a run of one SEED after 100 cells.
chaos-sagas: CELLS ?= all
chaos-sagas: ## Kill, fail and repeat every durable step of transfers, holds, reversals and the fold (CELLS=…, SEED=…, FROM=…)
	cargo build --workspace --bins
	@set -e; pg_bin=$$($(TEST_SHARDCTL) --data-dir $(TARGET)/test-postgresql postgres ensure); \
	SHARDLEDGER_PG_BIN="$$pg_bin" CELLS="$(CELLS)" \
	    cargo test -p integration-tests --test it -- --nocapture --test-threads 1 durable_steps::

# Prints one line a round. SEED=… with the seed of a line repeats that round's choice of faults.
chaos: ROUNDS ?= 20
chaos: SECONDS ?= 60
chaos: ## Random faults under load, ROUNDS=20 of SECONDS=60 (SEED=…, FAULTS=kill-node,freeze-router,…), each audited
	cargo build --workspace --bins
	@set -e; pg_bin=$$($(TEST_SHARDCTL) --data-dir $(TARGET)/test-postgresql postgres ensure); \
	SHARDLEDGER_PG_BIN="$$pg_bin" ROUNDS=$(ROUNDS) SECONDS=$(SECONDS) FAULTS="$(FAULTS)" \
	    cargo test -p integration-tests --test it -- --nocapture --test-threads 1 chaos::rounds::

# The version before is built in a worktree of its own; its programs stay in target/upgrade/<commit>.
upgrade-test: FROM ?= HEAD~1
upgrade-test: ## Replace nodes and routers of FROM=HEAD~1 by this version under load (FROM=migration: the newest commit with an older schema)
	cargo build --workspace --bins
	@set -e; pg_bin=$$($(TEST_SHARDCTL) --data-dir $(TARGET)/test-postgresql postgres ensure); \
	SHARDLEDGER_PG_BIN="$$pg_bin" CARGO_TARGET_DIR=$(TARGET) tests/upgrade.sh $(FROM)

chaos-selftest: broken-rules ## The same as broken-rules: take each guard away and name the tests that notice

broken-rules: ## Break one rule after another in a copy and see that tests fail (RULES="06 12": those; PARTS="units simulation": without a cluster)
	@tests/broken-rules/run.sh

format: ## Check formatting
	@if cargo fmt --version >/dev/null 2>&1; then echo 'cargo fmt --all --check'; cargo fmt --all --check; \
	else echo 'no cargo fmt here (rustup component add rustfmt): formatting is not checked' >&2; fi

lint: format ## Check formatting, clippy, and where cargo-deny is installed, the dependencies
	@if cargo clippy --version >/dev/null 2>&1; then echo '$(CLIPPY)'; $(CLIPPY); \
	else echo 'no cargo clippy here (rustup component add clippy): lints are not checked' >&2; fi
	@if cargo deny --version >/dev/null 2>&1; then echo 'cargo deny check'; cargo deny check; fi

configuration: ## Renew docs/operations/configuration.md, the reference of the configuration files
	@cargo build -p router -p shard-node
	@{ $(TARGET)/debug/router --print-config-reference && echo && $(TARGET)/debug/shard-node --print-config-reference; } > $(TARGET)/configuration.md
	@mv $(TARGET)/configuration.md docs/operations/configuration.md

metrics-reference: ## Renew the tables of docs/operations/metrics.md from a live cluster
	cargo build --workspace --bins
	@set -e; pg_bin=$$($(TEST_SHARDCTL) --data-dir $(TARGET)/test-postgresql postgres ensure); \
	RENEW=1 SHARDLEDGER_PG_BIN="$$pg_bin" cargo test -p integration-tests --test it -- metrics::reference::

openapi: ## Renew docs/openapi.json, the committed copy of the API's description
	cargo build -p router
	$(TARGET)/debug/router --print-openapi > docs/openapi.json

bench: release ## Measure against a PL/pgSQL transfer function and a raw append, about 20 minutes; writes target/bench/report.html
	@ops/bench/run.sh

# Each part writes its own report to target/bench; PARTS="long scaling" runs only those.
bench-long: release ## Measure what takes hours: many accounts, long histories, an open snapshot, scaling, a soak
	@ops/bench/run-long.sh $(PARTS)

soak: release ## Keep half of the peak for MINUTES=… and draw it over time: target/bench/soak.html
	@mkdir -p target/bench
	@$(SHARDCTL) bench soak --minutes $(MINUTES) --out target/bench/soak.json --report target/bench/soak.html

reshard-demo: release ## Grow 4 shards to 8 under load and shrink them again: target/bench/reshard.html (ACCOUNTS=…)
	@mkdir -p target/bench
	@$(SHARDCTL) bench reshard $(if $(ACCOUNTS),--accounts $(ACCOUNTS)) --out target/bench/reshard.json --report target/bench/reshard.html

# The services say in /version which commit they were built from.
release: export SHARDLEDGER_COMMIT := $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
release:
	cargo build --release --bins $(SERVICES)

clean: ## Remove what was built; a cluster's data stays
	cargo clean
