#!/usr/bin/env bash
# Prints the folder of promtool and prometheus, for the tests of metrics, alerts and dashboards. It is SHARDLEDGER_PROMETHEUS_BIN, the folder of the
# machine's own programs, or the Debian package unpacked into the folder $1. The script installs nothing, and prints nothing if it finds no programs.
set -u
if [ -n "${SHARDLEDGER_PROMETHEUS_BIN:-}" ]; then
    echo "$SHARDLEDGER_PROMETHEUS_BIN"
elif command -v promtool >/dev/null && command -v prometheus >/dev/null; then
    dirname "$(command -v promtool)"
elif [ -x "$1/unpacked/usr/bin/promtool" ]; then
    echo "$1/unpacked/usr/bin"
elif command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    mkdir -p "$1"
    folder=$(cd "$1" && pwd)
    { cd "$folder" && apt-get download prometheus && dpkg-deb -x prometheus_*.deb unpacked.draft && mv unpacked.draft unpacked; } >&2 &&
        echo "$folder/unpacked/usr/bin"
else
    echo 'no promtool here, and no apt-get to bring it: alerts and dashboards are tested without Prometheus' >&2
fi
