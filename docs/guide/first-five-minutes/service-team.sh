#!/usr/bin/env bash
# The first five minutes of a service team: a node, a transaction that commits, one that is refused, and who would be paid twice.
# Run it from the root of the repository; it needs the binary `holdfast` (cargo build) and python3, and leaves nothing.
set -euo pipefail
holdfast=${HOLDFAST:-target/debug/holdfast}
port=${PORT:-17400}
export HOLDFAST_COORDINATOR="127.0.0.1:$((port + 1))"
log=$(mktemp)
"$holdfast" dev --port "$port" 2>"$log" & node=$!
service=; agent=
trap 'kill $node $service $agent 2>/dev/null || true; wait 2>/dev/null || true; rm -f "$log"' EXIT
for _ in $(seq 600); do grep -q '^Ready' "$log" && break; kill -0 $node; sleep 0.05; done
grep '^Ready' "$log"

echo "1. Both branches can be done: committed."
"$holdfast" tx submit --file - --gid five-1 --wait end <<<'{ "mode": "tcc", "branches": [ { "participant": "accept", "payload": {} }, { "participant": "slow", "payload": {} } ] }'

echo "2. One is refused: rolled back, exit code 3, and nothing stays held."
code=0; "$holdfast" tx submit --file - --gid five-2 <<<'{ "mode": "tcc", "branches": [ { "participant": "accept", "payload": {} }, { "participant": "refuse", "payload": {} } ] }' || code=$?
[ "$code" = 3 ]

echo "3. The same gid again is the same transaction: nobody pays twice."
"$holdfast" tx submit --file - --gid five-1 --output json <<<'{ "mode": "tcc", "branches": [ { "participant": "accept", "payload": {} }, { "participant": "slow", "payload": {} } ] }' | grep -q '"repeated": true'

echo "4. Thirty lines of Python become a participant."
python3 examples/participant.py "$((port + 10))" >/dev/null 2>&1 & service=$!
"$holdfast" agent --service loyalty --coordinator "$HOLDFAST_COORDINATOR" --app "http://127.0.0.1:$((port + 10))" --http "127.0.0.1:$((port + 11))" --dev-plaintext 2>/dev/null & agent=$!
"$holdfast" tx submit --file - --gid five-3 --wait end <<<'{ "mode": "tcc", "branches": [ { "participant": "loyalty", "payload": { "customer": "alice", "points": 120 } }, { "participant": "accept", "payload": {} } ] }'
echo "Good."
