#!/usr/bin/env bash
# What `make bench` runs: the shard map's lookups, statements of a long history, then the comparison with a PL/pgSQL transfer
# function and a bare append. Flags go to `shardctl bench suite` (--rounds, --seconds, --sweep-seconds, --only, --seed). The
# release binaries must be built.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo bench --quiet -p shard-map
mkdir -p target/bench
# A figure below its bar is reported at the end. The rest is measured all the same.
missed=0
target/release/shardctl bench statements --out target/bench/statements.json || missed=$?
target/release/shardctl bench suite --out target/bench/suite.json --report target/bench/report.html "$@" || missed=$?
exit "$missed"
