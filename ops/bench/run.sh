#!/usr/bin/env bash
# What `make bench` runs: the shard map's lookups, then the comparison with a PL/pgSQL transfer function. Flags go to
# `shardctl bench suite` (--rounds, --seconds, --seed). The release binaries must be built.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo bench --quiet -p shard-map
mkdir -p target/bench
exec target/release/shardctl bench suite --out target/bench/suite.json "$@"
