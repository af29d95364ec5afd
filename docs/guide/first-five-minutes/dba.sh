#!/usr/bin/env bash
# The first five minutes of a DBA: where a key lives, a wrong rule and what to write instead.
# Run it from the root of the repository; it needs the binary `holdfast` (cargo build), and leaves nothing.
set -euo pipefail
holdfast=${HOLDFAST:-target/debug/holdfast}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

echo "1. The shipped rules are right."
"$holdfast" rules check config/shards.toml

echo "2. Where account A-17 lives, and why."
"$holdfast" locate --rules config/shards.toml account A-17

echo "3. A wrong word is told with its line and what was meant; the exit code says that it is a configuration (2)."
sed 's/^shard = /shrad = /' config/shards.toml >"$dir/shards.toml"
code=0; "$holdfast" rules check "$dir/shards.toml" 2>"$dir/told" || code=$?
cat "$dir/told"
[ "$code" = 2 ] && grep -q 'Did you mean "shard"?' "$dir/told"
echo "Good."
