#!/usr/bin/env bash
# Breaks one rule after another in a copy of the last commit and tells which tests noticed. A rule that can be broken without
# a test failing is an error. `make broken-rules`; with UNITS_ONLY=1 without the cluster, in a minute or two instead of half
# an hour; with RULES="06 12" only those.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
scratch="$root/target/broken-rules"
copy="$scratch/copy"
export CARGO_TARGET_DIR="$scratch/build" CARGO_TERM_COLOR=never RUST_BACKTRACE=0

drop_copy() { git -C "$root" worktree remove --force "$copy" 2>/dev/null || rm -rf "$copy"; git -C "$root" worktree prune; }
trap drop_copy EXIT
mkdir -p "$scratch"
drop_copy
git -C "$root" worktree add --quiet --detach "$copy" HEAD
cd "$copy"

# The tests that fail, one a line.
unit_tests() {
    cargo nextest run -p ledger --no-fail-fast >"$scratch/units.log" 2>&1 || true
    grep -q 'Summary' "$scratch/units.log" || { tail -n 40 "$scratch/units.log" >&2; return 1; }
    { grep -E '^ +FAIL ' "$scratch/units.log" || true; } | sed -E 's/.*\) ledger //' | sort -u
}

# What the table tests of the HTTP contract find, the row's name up to the colon.
contract_rows() {
    cargo build --workspace --bins >"$scratch/build.log" 2>&1 || { tail -n 40 "$scratch/build.log" >&2; return 1; }
    SHARDLEDGER_PG_BIN="$("$CARGO_TARGET_DIR/debug/shardctl" --data-dir "$scratch/postgresql" postgres ensure)"
    export SHARDLEDGER_PG_BIN
    cargo nextest run -p integration-tests -E 'test(contract::)' >"$scratch/contract.log" 2>&1 || true
    grep -q 'Summary' "$scratch/contract.log" || { tail -n 40 "$scratch/contract.log" >&2; return 1; }
    # The list of findings, one a line; each begins with the row's name.
    sed -n '/findings:$/,/^──/p' "$scratch/contract.log" | { grep -vE 'findings:$|^──|^ *$' || true; } \
        | sed -E 's/^ +//; s/: (step|POST|GET|PATCH|expected|differs).*//' | cut -c1-100 | sort -u
}

survived=0
for patch in "$here"/[0-9]*.patch; do
    rule="$(basename "$patch" .patch)"
    [[ -z "${RULES:-}" || " $RULES " == *" ${rule%%-*} "* ]] || continue
    git apply "$patch" || { echo "$rule: the patch does not apply any more; renew it" >&2; exit 1; }
    units="$(unit_tests)"
    rows=''
    [ -n "${UNITS_ONLY:-}" ] || rows="$(contract_rows)"
    git apply --reverse "$patch"
    echo "== $rule"
    [ -z "$units" ] || sed 's/^/   unit test     /' <<<"$units"
    [ -z "$rows" ] || sed 's/^/   contract row  /' <<<"$rows"
    if [ -z "$units$rows" ]; then
        echo "   NO TEST FAILED"
        survived=$((survived + 1))
    fi
done
[ "$survived" -eq 0 ] || { echo "$survived rules can be broken without a test failing" >&2; exit 1; }
