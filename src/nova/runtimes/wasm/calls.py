"""One loaded module and its calls. Each call has a store of its own: nothing that a module keeps in memory outlives it.

A *command* (``_start``) is a WASI program that reads its input from stdin, or from the file that its first argument names.
A *reactor* exports ``memory``, ``alloc(size) -> pointer`` and the handler, ``(pointer, size) -> i64``, whose result has the
pointer of the answer in the upper half and its size in the lower one.

What a call does in the engine goes through the C API as the ``wasmtime`` package binds it: its classes look up the types of
functions and of every export again for each call, which costs more than most calls.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from wasmtime import Engine, FuncType, Linker, MemoryType, Module, Trap, ValType, WasmtimeError

from nova.runtimes.wasm.engine import MAX_TABLE_ELEMENTS, MAX_TABLES, ffi

WASI: Final = "wasi_snapshot_preview1"
INPUT_FOLDER: Final = "/input"
INPUT_FILE: Final = f"{INPUT_FOLDER}/input.json"
_MIB: Final = 1 << 20

Output = Callable[[bytes], int]
"""Takes what a module wrote; returns how much of it, or a negative error number."""


class NotLoadable(Exception):
    """The module cannot be a function; the message says why."""


class Failed(Exception):
    """A call did not come to its result. ``kind`` is the type of the error that its caller gets."""

    def __init__(self, kind: str, message: str, stack: list[str] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.stack = stack or []


@dataclass(slots=True, eq=False)
class Call:
    """One call. ``interrupted`` is asked every time that the engine's epoch advances: True ends the call."""

    payload: bytes
    stdout: Output
    stderr: Output
    interrupted: Callable[[], bool]
    variables: Mapping[str, str] = field(default_factory=dict)
    """environment of this call alone, beside the function's"""


@dataclass(frozen=True, slots=True)
class Bounds:
    """``memory_bytes``: linear memory of one call. ``fuel``: instructions of one call, 0: not counted."""

    memory_bytes: int
    fuel: int = 0


class Function:
    """A module that is ready to be called, from several threads at once if need be."""

    def __init__(
        self,
        engine: Engine,
        module: Module,
        export: str,
        *,
        bounds: Bounds,
        env: Mapping[str, str],
        code_dir: str,
        scratch: str,
    ) -> None:
        """``export`` names the handler of a reactor. ``scratch`` is the module's ``/tmp``. Raises :class:`NotLoadable`."""
        self._engine = engine
        self._module = module
        self._bounds = bounds
        self._env = dict(env)
        imports = {(item.module, item.name or "") for item in module.imports}
        self._wasi = any(module_name == WASI for module_name, _ in imports)
        self._files = any(name.startswith("path_") for module_name, name in imports if module_name == WASI)
        self._folders = ((code_dir, "/code", False), (scratch, "/tmp", True))
        exports = {item.name: item.type for item in module.exports}
        self.is_command = _is_command(exports, export)
        self._export = b"_start" if self.is_command else export.encode()
        self._initialize = not self.is_command and "_initialize" in exports
        linker = Linker(engine)
        if self._wasi:
            linker.define_wasi()
        try:
            self._pre = linker.instantiate_pre(module)
        except WasmtimeError as error:
            raise NotLoadable(first_line(error)) from None

    def slot(self, folder: str) -> "Slot":
        """What one thread needs to make calls; ``folder`` is a host folder of its own, for input files."""
        return Slot(self, folder)


def _is_command(exports: Mapping[str, object], export: str) -> bool:
    handler = exports.get(export)
    if handler is None and "_start" in exports:
        return True
    if not _has_type(handler, [ValType.i32(), ValType.i32()], [ValType.i64()]):
        text = "exports neither _start nor" if handler is None else "has another type for"
        raise NotLoadable(f"the module {text} {export}, a function (pointer: i32, size: i32) -> i64")
    if not _has_type(exports.get("alloc"), [ValType.i32()], [ValType.i32()]):
        raise NotLoadable("the module exports no function alloc(size: i32) -> i32")
    if not isinstance(exports.get("memory"), MemoryType):
        raise NotLoadable("the module exports no memory of the name memory")
    return False


def _has_type(found: object, params: list[ValType], results: list[ValType]) -> bool:
    return isinstance(found, FuncType) and found.params == params and found.results == results


class Slot:
    """Where one call runs at a time. Belongs to one thread."""

    def __init__(self, function: Function, folder: str) -> None:
        self._function = function
        self._folder = folder
        self._input = os.path.join(folder, "input.json")
        self._call: Call | None = None
        self._trap = ctypes.POINTER(ffi.wasm_trap_t)()
        self._instance = ffi.wasmtime_instance_t()
        self._stands = False
        """the instance belongs to the store of this call: the engine ends the process that mixes them up"""
        self._item = ffi.wasmtime_extern_t()
        self._raw = (ffi.wasmtime_val_raw_t * 2)()
        self._env = _Environment(function._env)
        self._argv = _texts([function._export.decode() if not function.is_command else "handler", INPUT_FILE])
        # kept here: the engine has only their addresses
        self._epoch = _EPOCH(self._on_epoch)
        self._stdout = _WRITE(lambda _data, start, size: self._written(start, size, stderr=False))
        self._stderr = _WRITE(lambda _data, start, size: self._written(start, size, stderr=True))

    def run(self, call: Call) -> bytes | None:
        """The reactor's answer, or None after a command, which has written what it has to say. Raises :class:`Failed`."""
        function, bounds = self._function, self._function._bounds
        store = ffi.wasmtime_store_new(function._engine.ptr(), None, _NOTHING)
        try:
            self._call, self._stands = call, False
            context = ffi.wasmtime_store_context(store)
            ffi.wasmtime_store_limiter(store, bounds.memory_bytes, MAX_TABLE_ELEMENTS, 1, MAX_TABLES, 1)
            ffi.wasmtime_store_epoch_deadline_callback(store, self._epoch, None, _NOTHING)
            ffi.wasmtime_context_set_epoch_deadline(context, 1)
            if bounds.fuel:
                self._check(context, ffi.wasmtime_context_set_fuel(context, bounds.fuel))
            if function._wasi:
                self._check(context, ffi.wasmtime_context_set_wasi(context, self._wasi(call)))
            self._check(
                context,
                ffi.wasmtime_instance_pre_instantiate(
                    function._pre.ptr(), context, ctypes.byref(self._instance), ctypes.byref(self._trap)
                ),
            )
            self._stands = True
            if function.is_command:
                self._invoke(context, b"_start", 0)
                return None
            return self._react(context, call.payload)
        finally:
            self._call = None
            ffi.wasmtime_store_delete(store)
            if function._files and os.path.exists(self._input):
                os.unlink(self._input)

    def _react(self, context: Any, payload: bytes) -> bytes:
        if self._function._initialize:
            self._invoke(context, b"_initialize", 0)
        raw, size = self._raw, len(payload)
        raw[0].i32 = size
        self._invoke(context, b"alloc", 1)
        start = raw[0].i32 & 0xFFFFFFFF
        memory, total = self._memory(context)
        if start + size > total:
            raise Failed("Nova.InvalidOutput", f"alloc({size}) answered {start}, which is outside of memory")
        ctypes.memmove(memory + start, payload, size)
        raw[0].i64 = start  # the whole of it: what is above an i32 is not looked at
        raw[1].i64 = size
        self._invoke(context, self._function._export, 2)
        packed = raw[0].i64 & 0xFFFFFFFFFFFFFFFF
        start, size = packed >> 32, packed & 0xFFFFFFFF
        memory, total = self._memory(context)
        if start + size > total:
            raise Failed("Nova.InvalidOutput", f"the answer, {size} bytes at {start}, is outside of memory")
        return ctypes.string_at(memory + start, size)

    def _memory(self, context: Any) -> tuple[int, int]:
        """Where the memory is now, and how large."""
        if not self._stands or not self._get(context, b"memory") or self._item.kind != ffi.WASMTIME_EXTERN_MEMORY.value:
            return 0, 0
        found = ctypes.byref(self._item.of.memory)
        address = ctypes.c_void_p.from_buffer(ffi.wasmtime_memory_data(context, found)).value or 0
        return address, int(ffi.wasmtime_memory_data_size(context, found))

    def _get(self, context: Any, name: bytes) -> bool:
        return bool(
            ffi.wasmtime_instance_export_get(
                context, ctypes.byref(self._instance), _chars(name), len(name), ctypes.byref(self._item)
            )
        )

    def _invoke(self, context: Any, name: bytes, count: int) -> None:
        """Call an export whose type is known; arguments and result are in ``_raw``."""
        self._get(context, name)
        error = ffi.wasmtime_func_call_unchecked(
            context, ctypes.byref(self._item.of.func), self._raw, max(1, count), ctypes.byref(self._trap)
        )
        self._check(context, error)

    # -- WASI ----------------------------------------------------------------------------------------------------

    def _wasi(self, call: Call) -> Any:
        """The world of one call. The engine takes it over."""
        config = ffi.wasi_config_new()
        ffi.wasi_config_set_argv(config, 2, self._argv)
        self._env.give(config, call.variables)
        binary = ffi.wasm_byte_vec_t()
        size = len(call.payload)
        ffi.wasm_byte_vec_new(ctypes.byref(binary), size, ctypes.cast(ctypes.c_char_p(call.payload), _BYTES))
        ffi.wasi_config_set_stdin_bytes(config, ctypes.byref(binary))
        ffi.wasi_config_set_stdout_custom(config, self._stdout, None, _NOTHING)
        ffi.wasi_config_set_stderr_custom(config, self._stderr, None, _NOTHING)
        if self._function._files:
            with open(self._input, "wb") as file:
                file.write(call.payload)
            for host, inside, mutable in ((self._folder, INPUT_FOLDER, False), *self._function._folders):
                if not ffi.wasi_config_preopen_dir(config, host.encode(), inside.encode(), mutable):
                    raise Failed("Nova.Internal", f"the folder {inside} cannot be opened")
        return config

    def _written(self, start: Any, size: int, *, stderr: bool) -> int:
        call = self._call
        if call is None:
            return -1
        data = ctypes.string_at(start, size)
        return call.stderr(data) if stderr else call.stdout(data)

    def _on_epoch(self, _context: Any, _data: Any, delta: Any, _kind: Any) -> int:
        call = self._call
        if call is None or call.interrupted():
            stop = ffi.wasmtime_error_new(b"interrupted")
            return ctypes.cast(stop, ctypes.c_void_p).value or 0
        delta[0] = 1
        return 0

    # -- what can go wrong ---------------------------------------------------------------------------------------

    def _check(self, context: Any, error: Any) -> None:
        if self._trap:
            trap, self._trap = self._trap, ctypes.POINTER(ffi.wasm_trap_t)()
            self._raise_trap(context, Trap._from_ptr(trap))
        if error:
            raised = WasmtimeError._from_ptr(error)
            code = getattr(raised, "code", None)
            if code is None:
                raise self._failure(raised)
            if code != 0:
                raise Failed("Nova.ExitError", f"the program exited with code {code}")
            if not self._function.is_command:
                raise Failed("Nova.ExitError", "the module exited before it answered")

    def _failure(self, raised: WasmtimeError) -> Failed:
        text = first_line(raised)
        if "exceeds memory limits" in text:
            limit = self._function._bounds.memory_bytes // _MIB
            return Failed("Nova.OutOfMemory", f"the module needs more than {limit} MiB of memory to begin with")
        return Failed("WasmError", text)

    def _raise_trap(self, context: Any, trap: Trap) -> None:
        code = trap.trap_code
        name = code.name if code is not None else ""
        stack = [_frame(frame) for frame in trap.frames][::-1][-64:]
        text = trap.message.partition("wasm trap: ")[2].partition("\n")[0] or trap.message.partition("\n")[0]
        if name == "OUT_OF_FUEL":
            raise Failed("Nova.OutOfFuel", f"the call used up its {self._function._bounds.fuel} units of fuel", stack)
        if name == "STACK_OVERFLOW":
            raise Failed("Trap.StackOverflow", text, stack)
        limit, used = self._function._bounds.memory_bytes, self._memory(context)[1]
        if used * 2 > limit:
            sizes = f"{used // _MIB} of {limit // _MIB} MiB"
            raise Failed("Nova.OutOfMemory", f"{text}, with {sizes} of memory in use and no more to be had", stack)
        kind = "".join(part.capitalize() for part in name.split("_")) or "Error"
        raise Failed(f"Trap.{kind}", text, stack)


def _frame(frame: Any) -> str:
    name = frame.func_name or f"function {frame.func_index}"
    return f"{frame.module_name or 'module'}:{frame.module_offset:#x} in {name}"


def first_line(error: Exception) -> str:
    """What went wrong, and the first of its reasons."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Caused by" not in line]
    return ": ".join(line.removeprefix("0: ") for line in lines[:2])


class _Environment:
    """Variables in the form of the C API; those of a single call come last."""

    def __init__(self, fixed: Mapping[str, str]) -> None:
        self._fixed = dict(fixed)
        self._names: Any = None
        self._values: Any = None
        self._last: list[str] = []
        self._at: dict[str, int] = {}
        self._all: Any = None

    def give(self, config: Any, own: Mapping[str, str]) -> None:
        if list(own) != self._last:
            self._last = list(own)
            values = self._fixed | dict(own)
            self._at = {name: place for place, name in enumerate(values)}
            self._all = _array(list(values.values()))
            self._names = _texts(list(values))
            self._values = ctypes.cast(self._all, _TEXTS)
        for name in own:
            self._all[self._at[name]] = own[name].encode()
        ffi.wasi_config_set_env(config, len(self._at), self._names, self._values)


_BYTES: Final = ctypes.POINTER(ctypes.c_ubyte)
_TEXTS: Final = ctypes.POINTER(ctypes.POINTER(ctypes.c_char))
_EPOCH: Final[Any] = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.POINTER(ffi.wasmtime_context_t),
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.POINTER(ctypes.c_uint8),
)
_WRITE: Final[Any] = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, _BYTES, ctypes.c_size_t)
_NOTHING: Final[Any] = ctypes.cast(0, ctypes.CFUNCTYPE(None, ctypes.c_void_p))
_names: dict[bytes, Any] = {}
_naming = threading.Lock()


def _chars(name: bytes) -> Any:
    """The name of an export as the C API wants it, made once."""
    found = _names.get(name)
    if found is None:
        with _naming:
            found = _names[name] = ctypes.create_string_buffer(name)
    return found


def _array(texts: list[str]) -> Any:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _texts(texts: list[str]) -> Any:
    return ctypes.cast(_array(texts), _TEXTS)
