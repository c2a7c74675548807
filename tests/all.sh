#!/usr/bin/env bash
# `make test` runs this script: the lints, 20,000 simulated clusters and every test. The output ends with the summary of the test runner.
#
# Two thirds of the time are compilation. The tests leave a third of two processors idle, because they wait for clusters, so clippy runs at the same
# time with the lowest priority. cargo-nextest gets the list of built tests, so that it does not wait for the lock on the target folder that clippy holds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
run() { echo "$*"; "$@"; }
make() { command make --no-print-directory "$@"; }

has_nextest() { cargo nextest --version >/dev/null 2>&1; }

if has_nextest; then
    make format
else
    make lint
fi
make simulate SEEDS=20000
run cargo build --workspace --bins
SHARDLEDGER_PG_BIN=$("$target/debug/shardctl" --data-dir "$target/test-postgresql" postgres ensure)
SHARDLEDGER_PROMETHEUS_BIN=$(tests/prometheus.sh "$target/test-prometheus") || true
export SHARDLEDGER_PG_BIN SHARDLEDGER_PROMETHEUS_BIN
if ! has_nextest; then
    run cargo test --workspace
    exit
fi

echo 'cargo nextest list --workspace: compiles the tests'
cargo nextest list --workspace --list-type binaries-only --message-format json >"$target/test-binaries.json"
cargo metadata --format-version 1 >"$target/test-metadata.json"
# The lints get their own process group, so that the trap can end all of them when the run is interrupted.
set -m
nice -n 19 make --no-print-directory lint >"$target/lint.log" 2>&1 &
lint=$!
set +m
trap 'kill -- -"$lint" 2>/dev/null || true' EXIT
echo "make lint >$target/lint.log"
tests=0
run cargo nextest run --binaries-metadata "$target/test-binaries.json" --cargo-metadata "$target/test-metadata.json" || tests=$?
if ! wait "$lint"; then
    cat "$target/lint.log" >&2
    echo 'the lints found something: see above' >&2
    exit 1
fi
exit "$tests"
