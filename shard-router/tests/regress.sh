#!/usr/bin/env bash
# PostgreSQL's own regression suite, once straight to a server and once through a router in front of a fresh database: the same output, or a
# difference to explain. The suite comes with PostgreSQL's source (Debian: pool/main/p/postgresql-15/postgresql-15_*.orig.tar.*).
#   regress.sh FOLDER-OF-SRC-TEST-REGRESS DIRECT-PORT ROUTER-PORT OUTPUT-FOLDER [USER]
set -euo pipefail
suite=$(cd "$1" && pwd); direct=$2; router=$3; output=$4; user=${5:-postgres}
mkdir -p "$output/direct" "$output/router"
export PGHOST=127.0.0.1 PGUSER=$user PGTZ=PST8PDT PGDATESTYLE='Postgres, MDY' PGSSLMODE=disable
export PGOPTIONS='-c intervalstyle=postgres_verbose' PG_ABS_SRCDIR=$suite PG_ABS_BUILDDIR=$output PG_LIBDIR=/nowhere PG_DLSUFFIX=.so
tests=$(sed -n 's/^test: //p' "$suite/parallel_schedule" | tr ' ' '\n')
run() { # SIDE PORT: all tests in the order of the schedule, one after the other
  local side=$1 port=$2
  psql -qX -p "$direct" -d postgres -c 'DROP DATABASE IF EXISTS regression WITH (FORCE)' -c 'CREATE DATABASE regression TEMPLATE template0' >/dev/null
  for test in $tests; do
    timeout 300 psql -X -a -q -p "$port" -d regression -v HIDE_TABLEAM=on -v HIDE_TOAST_COMPRESSION=on \
      <"$suite/sql/$test.sql" >"$output/$side/$test.out" 2>&1 || true
  done
}
run direct "$direct"
# Roles and tablespaces belong to the whole server, so what the first run left of them is removed.
psql -qXAt -p "$direct" -d postgres -c 'DROP DATABASE regression WITH (FORCE)' \
  -c "SELECT format('DROP ROLE %I', rolname) FROM pg_roles WHERE rolname LIKE 'regress%'" | psql -qX -p "$direct" -d postgres 2>/dev/null || true
run router "$router"
same=0; all=0; different=""
for test in $tests; do
  all=$((all + 1))
  if cmp -s "$output/direct/$test.out" "$output/router/$test.out"; then same=$((same + 1)); else different="$different $test"; fi
done
echo "$same of $all tests have the same output. Different:$different"
