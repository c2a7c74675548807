#!/usr/bin/env bash
# Breaks one rule or guard after another in a copy of the last commit and prints which tests fail. A rule that can be broken
# without a failing test is an error. `make broken-rules` runs all parts and takes about an hour. PARTS="units simulation"
# leaves the cluster out. RULES="06 12" breaks only those two rules.
set -euo pipefail
# A failed build does not show that no test notices the rule.
shopt -s inherit_errexit
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
scratch="$root/target/broken-rules"
copy="$scratch/copy"
parts="${PARTS:-units simulation cluster}"
# The simulation notices most broken rules within a few hundred seeds.
seeds="${SEEDS:-5000}"
export CARGO_TARGET_DIR="$scratch/build" CARGO_TERM_COLOR=never RUST_BACKTRACE=0

drop_copy() { git -C "$root" worktree remove --force "$copy" 2>/dev/null || rm -rf "$copy"; git -C "$root" worktree prune; }
trap drop_copy EXIT
mkdir -p "$scratch"
drop_copy
git -C "$root" worktree add --quiet --detach "$copy" HEAD
cd "$copy"

wanted() { [[ " $parts " == *" $1 "* ]]; }

# Prints the crates that a patch changes and that have unit tests, one on each line.
crates_of() {
    sed -nE 's#^\+\+\+ b/(crates/)?(ledger|router|shard-node)/.*#\2#p' "$1" | sort -u
}

# Prints the failing tests of a crate, one on each line.
unit_tests() {
    cargo nextest run -p "$1" --no-fail-fast >"$scratch/units.log" 2>&1 || true
    grep -q 'Summary' "$scratch/units.log" || { tail -n 40 "$scratch/units.log" >&2; return 1; }
    { grep -E '^ +FAIL ' "$scratch/units.log" || true; } | sed -E 's/.*\) (ledger|router|shard-node) //' | sort -u
}

# Prints the first seed that finds something, and its finding. Without a finding, the number of seeds goes to stderr.
simulation() {
    cargo build --workspace --bin simulate >"$scratch/build.log" 2>&1 || { tail -n 40 "$scratch/build.log" >&2; return 1; }
    "$CARGO_TARGET_DIR/debug/simulate" --seeds "$seeds" >"$scratch/simulation.log" 2>&1 || true
    grep -q 'seeds a minute' "$scratch/simulation.log" || { tail -n 40 "$scratch/simulation.log" >&2; return 1; }
    grep -m 1 -E '^SEED=[0-9]+: ' "$scratch/simulation.log" | cut -c1-240 || echo "   (no finding of the simulation in $seeds seeds)" >&2
}

build_services() {
    cargo build --workspace --bins >"$scratch/build.log" 2>&1 || { tail -n 40 "$scratch/build.log" >&2; return 1; }
    SHARDLEDGER_PG_BIN="$("$CARGO_TARGET_DIR/debug/shardctl" --data-dir "$scratch/postgresql" postgres ensure)"
    export SHARDLEDGER_PG_BIN
}

# Runs the matching tests of a running system. Their output goes to $scratch/cluster.log.
cluster_tests() {
    build_services
    cargo nextest run -p integration-tests -E "test($1)" >"$scratch/cluster.log" 2>&1 || true
    grep -q 'Summary' "$scratch/cluster.log" || { tail -n 40 "$scratch/cluster.log" >&2; return 1; }
}

# Prints the matching tests that fail, one on each line. For a table it prints the name of each failing row, which ends at the colon. Once an invariant of
# the shared cluster is broken, every test finds that at its end, so these tests are only counted.
failing_tests() {
    cluster_tests "$1"
    awk '
        / (PASS|FAIL|TIMEOUT) +\[/ { test = $NF; rows = 0 }
        /^ *Summary \[/ { exit }
        rows && (/^ *$/ || /───/) { rows = 0 }
        rows { line = $0; sub(/^ +/, "", line); sub(/: (step|POST|GET|PATCH|expected|differs).*/, "", line); print test ", row: " substr(line, 1, 100) }
        /^ *Error: .* findings:$/ { rows = 1; next }
        /^ *Error: verify found violations/ { violated++; next }
        /^ *Error: / { print test }
        END { if (violated) print violated " tests at whose end verify finds violations" }
    ' "$scratch/cluster.log" | sort -u
}

# Prints the tests that notice the broken rule of this patch, one on each line.
noticed() {
    local crate
    if wanted units; then
        for crate in $(crates_of "$1"); do
            unit_tests "$crate" | sed 's/^/   unit test     /'
        done
    fi
    if wanted simulation && [ -n "$(crates_of "$1")" ]; then
        simulation | sed 's/^/   simulation    /'
    fi
    wanted cluster || return 0
    if grep -qE '^\+\+\+ b/crates/ledger/' "$1"; then
        failing_tests contract:: | sed 's/^/   contract test /'
    elif grep -qE '^\+\+\+ b/(shard-node|migrations)/' "$1"; then
        failing_tests node:: | sed 's/^/   node test     /'
    fi
}

survived=0
for patch in "$here"/[0-9]*.patch; do
    rule="$(basename "$patch" .patch)"
    [[ -z "${RULES:-}" || " $RULES " == *" ${rule%%-*} "* ]] || continue
    # A guard may be in the database, which unit tests do not use.
    if ! wanted cluster && [ -z "$(crates_of "$patch")" ]; then continue; fi
    git apply "$patch" || { echo "$rule: the patch does not apply any more; renew it" >&2; exit 1; }
    tests="$(noticed "$patch")"
    git apply --reverse "$patch"
    echo "== $rule"
    if [ -n "$tests" ]; then
        echo "$tests"
    else
        echo "   NO TEST FAILED (of these parts: $parts)"
        survived=$((survived + 1))
    fi
done
[ "$survived" -eq 0 ] || { echo "$survived rules can be broken without a test of these parts failing: $parts" >&2; exit 1; }
