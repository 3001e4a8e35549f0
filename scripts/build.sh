#!/usr/bin/env bash
# Make bin/: a launcher for every command of this checkout, and the agent as one file.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p bin
for name in nova comet corona nebula aurora zenith orbit; do
  [ -x ".venv/bin/$name" ] || { echo "build: .venv/bin/$name is missing; run make build" >&2; exit 1; }
  cat >"bin/$name.new" <<LAUNCHER
#!/bin/sh
exec "\$(dirname "\$(readlink -f "\$0")")/../.venv/bin/$name" "\$@"
LAUNCHER
  chmod 755 "bin/$name.new"
  mv "bin/$name.new" "bin/$name"
done

# The agent knows the standard library only, so it can be one executable file: a zip with an interpreter line.
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/nova/runtimes"
cp deploy/agent/__main__.py "$tree"
cp src/nova/__init__.py "$tree/nova"
cp src/nova/runtimes/__init__.py "$tree/nova/runtimes"
for part in agent runtimes/python; do
  mkdir -p "$tree/nova/$part"
  cp "src/nova/$part"/*.py "$tree/nova/$part"
done
.venv/bin/python -m zipapp "$tree" --output bin/nova-agent.new --python "/usr/bin/env python3"
chmod 755 bin/nova-agent.new
mv bin/nova-agent.new bin/nova-agent
echo "bin: $(ls bin | tr '\n' ' ')"
