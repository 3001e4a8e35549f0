#!/usr/bin/env bash
# Lint, then every test with coverage, then the store's tests again on the distribution's PostgreSQL.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/lint.sh
.venv/bin/coverage erase
.venv/bin/coverage run -m pytest "$@"
bash scripts/test-postgres15.sh
.venv/bin/coverage combine --quiet
.venv/bin/coverage report --format=total | sed 's/^/coverage: /; s/$/ %/'
.venv/bin/coverage html --quiet --directory htmlcov || true
