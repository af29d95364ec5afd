#!/usr/bin/env bash
# The first five minutes of an SRE: is the machine fit, is the cluster well, what does it do, what do the alerts look at.
# Run it from the root of the repository; it needs the binary `holdfast` (cargo build), and leaves nothing.
set -euo pipefail
holdfast=${HOLDFAST:-target/debug/holdfast}
port=${PORT:-17500}
export HOLDFAST_COORDINATOR="127.0.0.1:$((port + 1))"
log=$(mktemp); dir=$(mktemp -d)
"$holdfast" dev --port "$port" 2>"$log" & node=$!
trap 'kill $node 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$log" "$dir"' EXIT
for _ in $(seq 600); do grep -q '^Ready' "$log" && break; kill -0 $node; sleep 0.05; done

echo "1. Every check, with cause and remedy where something is not well."
"$holdfast" check --data-dir "$dir" --output json >"$dir/check.json" || true
python3 - "$dir/check.json" <<'PYTHON'
import json, sys
found = json.load(open(sys.argv[1]))
assert len(found["checks"]) >= 25, len(found["checks"])
for check in found["checks"]:
    assert check["status"] in ("ok", "skipped") or check["remedy"], check
print(f'{len(found["checks"])} checks, {found["warnings"]} warnings, {found["failed"]} failed')
PYTHON

echo "2. Who leads, and do the states agree."
"$holdfast" cluster status

echo "3. What it does now."
"$holdfast" tx submit --file - <<<'{ "mode": "saga", "branches": [ { "participant": "accept", "payload": {} } ] }' >/dev/null
"$holdfast" top --once --every-ms 200

echo "4. An error code, explained."
"$holdfast" explain HF2002 | head -3
echo "Good."
