#!/usr/bin/env bash
# Style, types and the layers of the house.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/ruff format --check --quiet src tests bench scripts deploy
.venv/bin/ruff check --quiet src tests bench scripts deploy
.venv/bin/mypy
.venv/bin/mypy --strict --exclude bench/functions bench
.venv/bin/lint-imports --no-logo
if git grep -nIE -e '--(extra-)?index-url|"resolved": "https?:|registry = "https?:' -- requirements '*.json' '*.toml'; then
  echo "lock files and settings must not name registry hosts" >&2
  exit 1
fi
