#!/usr/bin/env bash
# Everything an image or a server installs: the locked dependencies, checked against their hashes, in dist/wheelhouse
# (Node.js in its node/), and Nova's own wheel in dist/nova. What is made from them needs no network. Downloads only when a lock file changed.
set -euo pipefail
cd "$(dirname "$0")/.."
house=dist/wheelhouse
python=.venv/bin/python
[ -x "$python" ] || { echo "run 'make build' first: it makes the virtual environment" >&2; exit 1; }

sum=$(cat requirements/{runtime,node}.txt | sha256sum)
if [ "$(cat "$house/.locks.sum" 2>/dev/null)" != "$sum" ]; then
  rm -rf "$house"
  mkdir -p "$house"
  fetch() {
    "$python" -m pip download --disable-pip-version-check --quiet --require-hashes --only-binary :all: \
      --dest "$1" -r "requirements/$2.txt" 2> >(grep -v "is neither a file nor a directory" >&2)
  }
  fetch "$house" runtime
  fetch "$house/node" node
  printf '%s' "$sum" >"$house/.locks.sum"
fi

# Nova's own wheel from a copy of the sources, so that no egg-info or build folder of the checkout gets into it.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r pyproject.toml README.md LICENSE "$copy"
mkdir "$copy/src"
tar -C src --exclude=__pycache__ --exclude='*.egg-info' -cf - nova | tar -C "$copy/src" -xf -
rm -rf dist/nova
"$python" -m pip wheel --disable-pip-version-check --quiet --no-deps --no-build-isolation --no-index \
  --wheel-dir dist/nova "$copy"
echo "dist/wheelhouse: $(find "$house" -name '*.whl' | wc -l) wheels, $(du -sm "$house" | cut -f1) MiB"
