#!/bin/sh
# Make the generated code of src/nova/rpc/nova.proto again; with a folder as argument, put it there instead of into src.
set -eu
cd "$(dirname "$0")/.."
out=${1:-src}
python=${PYTHON:-.venv/bin/python}
"$python" -m grpc_tools.protoc -I src --python_out="$out" --pyi_out="$out" src/nova/rpc/nova.proto
