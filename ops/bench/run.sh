#!/usr/bin/env bash
# What `make bench` runs: the shard map's lookups, statements of a long history, then the comparison with a PL/pgSQL transfer
# function. Flags go to `shardctl bench suite` (--rounds, --seconds, --seed). The release binaries must be built.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo bench --quiet -p shard-map
mkdir -p target/bench
# Below a bar is told at the end, and does not keep the rest from being measured.
missed=0
target/release/shardctl bench statements --out target/bench/statements.json || missed=$?
target/release/shardctl bench suite --out target/bench/suite.json "$@" || missed=$?
exit "$missed"
