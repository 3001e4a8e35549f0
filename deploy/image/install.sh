#!/bin/sh
# Install wheels into a virtual environment, without a network:
#   install.sh locked WHEELS TARGET LOCK…   what the lock files name, checked against their hashes
#   install.sh nova WHEELS TARGET           Nova's own wheel
set -eu
what=$1 wheels=$2 target=$3
shift 3
pip() { "$target/bin/python" -m pip install --disable-pip-version-check --quiet --no-index --no-cache-dir --no-compile "$@"; }
# On every core. What is no valid Python in a package is not ours to refuse; it is never imported.
compile() { "$target/bin/python" -m compileall -q -j 0 "$target"/lib/python3*/site-packages || true; }

if [ "$what" = nova ]; then
  pip --no-deps "$wheels"/*.whl
  compile
  exit
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "install: Python 3.11 or newer is needed" >&2; exit 1; }
[ -x "$target/bin/python" ] || python3 -m venv "$target"
for lock in "$@"; do pip --find-links "$wheels" --find-links "$wheels/node" --require-hashes -r "$lock"; done
compile
