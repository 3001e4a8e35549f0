"""The WebAssembly engine as every process that compiles or runs a module sets it up, and compiled modules on disk.

A compiled module is machine code: whoever loads one trusts it. Builds write it, into a folder that they empty first; its
name says for which engine it is, so that another version of the engine compiles again instead of failing.
"""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any, Final

from wasmtime import Config, Engine, Module, WasmtimeError, _ffi, wat2wasm

ffi: Any = _ffi
"""What the package's classes lack is there as the C API has it."""

COMPILED_FOLDER: Final = ".nova"
"""Of the code: what builds write for the platform."""
STACK_BYTES: Final = 1 << 20
"""Stack of one call's WebAssembly."""
MAX_TABLES: Final = 4
MAX_TABLE_ELEMENTS: Final = 100_000
"""Of a module; compilers make one table, with an element for each function whose address is taken."""
_RESIDENT_BYTES: Final = 128 << 10
"""Of a slot's memory: cleared by writing, not by giving it back to the kernel."""
_BINARY: Final = b"\0asm"
_RECIPE: Final = "1"
"""Changes with the settings of :func:`make_engine`."""


def make_engine(*, fuel: bool = False, slots: int = 1) -> Engine:
    """An engine whose code can be interrupted; with ``fuel`` it also counts the instructions that it runs.

    At most ``slots`` instances stand at a time. Their memory is set aside once and cleared between calls, which takes half
    the time of mapping it for each.
    """
    config = Config()
    config.epoch_interruption = True
    config.consume_fuel = fuel
    config.max_wasm_stack = STACK_BYTES
    config.wasm_threads = False
    config.shared_memory = False
    config.wasm_memory64 = False
    pool = ffi.wasmtime_pooling_allocation_config_new()
    ffi.wasmtime_pooling_allocation_config_total_core_instances_set(pool, slots)
    ffi.wasmtime_pooling_allocation_config_total_memories_set(pool, slots)
    ffi.wasmtime_pooling_allocation_config_total_tables_set(pool, slots * MAX_TABLES)
    ffi.wasmtime_pooling_allocation_config_max_tables_per_module_set(pool, MAX_TABLES)
    ffi.wasmtime_pooling_allocation_config_table_elements_set(pool, MAX_TABLE_ELEMENTS)
    ffi.wasmtime_pooling_allocation_config_linear_memory_keep_resident_set(pool, _RESIDENT_BYTES)
    ffi.wasmtime_pooling_allocation_config_table_keep_resident_set(pool, _RESIDENT_BYTES)
    ffi.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    ffi.wasmtime_pooling_allocation_config_delete(pool)
    return Engine(config)


def compiled_name(entry: str, version: str, *, fuel: bool = False) -> str:
    """Where a build leaves the compiled form of the module ``entry``, relative to the code. ``version`` is the engine's."""
    kind = "fuel" if fuel else "plain"
    name = hashlib.sha256(entry.encode()).hexdigest()[:16]  # a path may be longer than a name
    return f"{COMPILED_FOLDER}/{name}.{version}-{_RECIPE}-{platform.machine()}-{kind}.cwasm"


def binary_of(source: bytes) -> bytes:
    """The module in ``source``: the binary format, or the text format, told apart by how they begin.

    Raises WasmtimeError with what is wrong with the text.
    """
    return source if source.startswith(_BINARY) else bytes(wat2wasm(source))


def compile_module(engine: Engine, source: bytes) -> Module:
    """Raises WasmtimeError for what is no module."""
    return Module(engine, binary_of(source))


def load_module(engine: Engine, code_dir: str, entry: str, version: str, *, fuel: bool = False) -> Module:
    """The module ``entry`` (relative to ``code_dir``), compiled before or else now. A compiled file is mapped, so that
    all who run it share its pages. Raises WasmtimeError, OSError."""
    compiled = os.path.join(code_dir, compiled_name(entry, version, fuel=fuel))
    if os.path.isfile(compiled):
        try:
            return Module.deserialize_file(engine, compiled)
        except WasmtimeError:  # made on a processor that can do more than this one
            pass
    return compile_module(engine, Path(code_dir, entry).read_bytes())
