#!/usr/bin/env bash
# Resolve the lock files from pyproject.toml and requirements/*.in. Hash-pinned, without registry hosts.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  .venv/bin/pip-compile --quiet --allow-unsafe --generate-hashes --strip-extras \
    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host "$@"
}
compile -o requirements/runtime.txt pyproject.toml
for name in build node dev; do compile -o "requirements/$name.txt" "requirements/$name.in"; done
