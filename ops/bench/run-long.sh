#!/usr/bin/env bash
# What `make bench-long` runs: `shardctl bench prototype`, `long`, `scaling`, `takeover`, `overload` and `soak`, each with a report of its own in
# target/bench. Arguments name the parts to run. The release binaries must be built.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=target/bench
mkdir -p "$out"
parts=("$@")
[ "${#parts[@]}" -gt 0 ] || parts=(prototype long scaling takeover overload soak)
# A figure below its bar is reported at the end. The rest is measured all the same.
missed=0
for part in "${parts[@]}"; do
    page=(--report "$out/$part.html")
    [ "$part" != prototype ] || page=()
    target/release/shardctl bench "$part" --out "$out/$part.json" "${page[@]}" || missed=$?
done
exit "$missed"
