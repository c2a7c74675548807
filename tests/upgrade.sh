#!/usr/bin/env bash
# Builds the programs of a former commit and runs the test of the rolling upgrade from them to the present build (`make upgrade-test`).
# `tests/upgrade.sh migration` takes the newest commit of the main line whose schema version is older.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
from="${1:-HEAD~1}"
target="$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")"
scratch="$target/upgrade"
source="$scratch/source"

# The file name of the newest migration is the schema version of a commit.
schema_of() { git -C "$root" ls-tree --name-only "$1" migrations/ | tail -n 1; }

if [ "$from" = migration ]; then
    from=
    for commit in $(git -C "$root" rev-list --first-parent HEAD); do
        [ "$(schema_of "$commit")" = "$(schema_of HEAD)" ] || { from="$commit"; break; }
    done
    [ -n "$from" ] || { echo 'no commit has an older schema version' >&2; exit 1; }
fi
commit="$(git -C "$root" rev-parse --short=12 --verify "$from^{commit}")"
programs="$scratch/$commit"

drop_source() { git -C "$root" worktree remove --force "$source" 2>/dev/null || rm -rf "$source"; git -C "$root" worktree prune; }

build() {
    mkdir -p "$scratch"
    drop_source
    trap drop_source EXIT
    git -C "$root" worktree add --quiet --detach "$source" "$commit"
    # Reuse the compiled dependencies of the present build, because they are mostly the same.
    if [ ! -d "$scratch/build" ] && [ -d "$target/debug/deps" ]; then
        mkdir -p "$scratch/build/debug"
        cp -al "$target/debug/deps" "$scratch/build/debug/"
        cp -a "$target/debug/.fingerprint" "$target/debug/build" "$scratch/build/debug/"
    fi
    # Select all packages, so that dependencies have the same features as in the present build.
    (cd "$source" && SHARDLEDGER_COMMIT="$commit" CARGO_TARGET_DIR="$scratch/build" \
        cargo build --locked --workspace --bin router --bin shard-node --bin shardctl)
    rm -rf "$programs.new"
    mkdir "$programs.new"
    cp "$scratch/build/debug/router" "$scratch/build/debug/shard-node" "$scratch/build/debug/shardctl" "$programs.new/"
    mv "$programs.new" "$programs"
    drop_source
}

echo "from $commit ($(git -C "$root" show -s --format=%s "$commit"), $(schema_of "$commit")) to the present build ($(schema_of HEAD))"
[ -x "$programs/shardctl" ] || build
cd "$root"
SHARDLEDGER_OLD_BIN="$programs" CARGO_TARGET_DIR="$target" \
    cargo test -p integration-tests --test it -- --nocapture --test-threads 1 rolling_upgrade::
