#!/usr/bin/env bash
# The store's tests on PostgreSQL 15 from the distribution: the SQL must not need anything newer than 14.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=/usr/lib/postgresql/15/bin
if [ ! -x "$bin/postgres" ]; then
  echo "PostgreSQL 15 is not installed (apt-get install postgresql-15)" >&2
  exit 1
fi
memory=() # a database for each test is quick there
[ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -ge 4194304 ] 2>/dev/null && memory=(-p /dev/shm)
work=$(mktemp -d "${memory[@]}")
as=()
if [ "$(id -u)" = 0 ]; then
  as=(setpriv --reuid=postgres --regid=postgres --clear-groups --)
  chown postgres:postgres "$work"
fi
cleanup() {
  "${as[@]}" "$bin/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
"${as[@]}" "$bin/initdb" -D "$work/data" -U postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 >/dev/null
"${as[@]}" "$bin/pg_ctl" -D "$work/data" -w -l "$work/log" -o "-c listen_addresses='' -c fsync=off -c full_page_writes=off -k $work" start >/dev/null
chmod 755 "$work"
NOVA_TEST_PG_DSN="host=$work user=postgres dbname=postgres" \
  .venv/bin/coverage run -m pytest -q tests/store --deselect tests/store/test_embedded.py
