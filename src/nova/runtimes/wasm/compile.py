"""A build step: ``compile.py PACKAGE VERSION CODE ENTRY FUEL`` compiles one module, and removes what else is where the
platform looks for compiled modules: that is machine code, which nobody may bring along."""

import os
import shutil
import sys

if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.path.append(os.path.dirname(sys.argv[1]))
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "..")))

    from wasmtime import WasmtimeError

    from nova.runtimes.wasm import engine

    version, code, entry = sys.argv[2:5]
    fuel = int(sys.argv[5]) > 0
    folder = os.path.join(code, engine.COMPILED_FOLDER)
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    try:
        with open(os.path.join(code, entry), "rb") as source:
            module = engine.compile_module(engine.make_engine(fuel=fuel), source.read())
    except (WasmtimeError, OSError) as error:
        print(f"{entry}: {error}", file=sys.stderr)
        sys.exit(1)
    with open(os.path.join(code, engine.compiled_name(entry, version, fuel=fuel)), "xb") as compiled:
        compiled.write(module.serialize())
