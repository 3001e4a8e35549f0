"""Starts the worker: ``bootstrap.py PACKAGE VERSION FUEL``.

``PACKAGE`` is the folder of the wasmtime package of that version. It and this folder are all of Python's packages that an
instance has.
"""

import os
import sys

if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.path.append(os.path.dirname(sys.argv[1]))
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "..")))

    from nova.runtimes.wasm.worker import main

    main(sys.argv[2], int(sys.argv[3]))
