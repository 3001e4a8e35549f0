#!/usr/bin/env bash
# Lint, then every test with coverage, then the store's tests again on the distribution's PostgreSQL.
# Without arguments the tests of whole platforms run beside all others, each half with a database server of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/lint.sh
.venv/bin/coverage erase
if (($#)); then
  .venv/bin/coverage run -m pytest "$@"
else
  set -m # else the shell has what runs beside ignore Ctrl-C, and all that it starts
  platforms=(tests/e2e tests/deploy tests/cli tests/images)
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  .venv/bin/coverage run -m pytest -p no:cacheprovider "${platforms[@]}" >"$log" 2>&1 &
  beside=$!
  trap 'kill "$beside" 2>/dev/null || true; rm -f "$log"' EXIT
  failed=0
  .venv/bin/coverage run -m pytest tests "${platforms[@]/#/--ignore=}" || failed=$?
  echo "waiting for the tests of whole platforms: ${platforms[*]}"
  wait "$beside" || failed=$?
  trap 'rm -f "$log"' EXIT
  cat "$log"
  ((failed == 0)) || exit "$failed"
  .venv/bin/python scripts/backends_table.py
fi
bash scripts/test-postgres15.sh
.venv/bin/coverage combine --quiet
.venv/bin/coverage report --format=total | sed 's/^/coverage: /; s/$/ %/'
.venv/bin/coverage html --quiet --directory htmlcov || true
