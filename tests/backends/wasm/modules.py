"""Modules of the tests, in the text format."""

GROWING_ALLOC = """
  (func (export "alloc") (param $size i32) (result i32)
    (local $start i32)
    (local.set $start (global.get $free))
    (global.set $free (i32.add (global.get $free) (local.get $size)))
    (block $fits
      (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
      (drop (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get $size) (i32.const 65536))))))
    (local.get $start))
"""
"""Room after the global ``$free``."""


def reactor(body: str, *, imports: str = "", free: int = 4096, pages: int = 1, extra: str = "") -> str:
    """``body`` is that of ``handle (param $start i32) (param $size i32) (result i64)``."""
    return f"""(module {imports}
  (memory (export "memory") {pages})
  (global $free (mut i32) (i32.const {free}))
  {GROWING_ALLOC} {extra}
  (func (export "handle") (param $start i32) (param $size i32) (result i64) {body}))"""


INPUT = "(i64.or (i64.shl (i64.extend_i32_u (local.get $start)) (i64.const 32)) (i64.extend_i32_u (local.get $size)))"
ECHO = reactor(INPUT)
"""Answers with its input."""


def answer(start: int, size: int) -> str:
    """What stands there in memory."""
    return f"(i64.const {start << 32 | size})"


COUNTER = reactor(
    f"""(i32.store8 (i32.const 16) (i32.add (i32.load8_u (i32.const 16)) (i32.const 1))) {answer(16, 1)}""",
    extra='(data (i32.const 16) "0")',
)
"""The digit that it finds in memory and adds one to."""

LEAVES = reactor(
    f"""(drop (memory.grow (i32.const 48)))
    (if (i32.eq (i32.load8_u (local.get $start)) (i32.const 49)) (then
      (i32.store8 (i32.const 1000) (i32.const 1)) (i32.store8 (i32.const 3000000) (i32.const 1))
      (global.set $kept (i32.const 1)) (table.set (i32.const 1) (ref.func $some))))
    (i32.store8 (i32.const 16) (i32.add (i32.const 48)
      (i32.add (i32.add (i32.load8_u (i32.const 1000)) (i32.load8_u (i32.const 3000000)))
        (i32.add (global.get $kept) (i32.eqz (ref.is_null (table.get (i32.const 1))))))))
    {answer(16, 1)}""",
    extra="(global $kept (mut i32) (i32.const 0)) (table 4 funcref) (func $some) (elem declare func $some)",
)
"""Leaves something in memory, a global and a table when it is told ``1``; answers how much of it it finds."""

SPIN = reactor("(loop $again (br $again)) (unreachable)")
HOARD = reactor("""(loop $again (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)""")
TOO_LARGE = reactor(INPUT, pages=4096)
DEEP = reactor("(call $down) (i64.const 0)", extra="(func $down (call $down) (call $down))")
OUTSIDE = reactor("(i64.load (i32.const 2000000000))")
WRONG_ANSWER = reactor("(i64.const 0x7fffff0000001000)")

_WASI = {
    "fd_read": "(param i32 i32 i32 i32) (result i32)",
    "fd_write": "(param i32 i32 i32 i32) (result i32)",
    "proc_exit": "(param i32)",
    "path_open": "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)",
    "environ_get": "(param i32 i32) (result i32)",
    "environ_sizes_get": "(param i32 i32) (result i32)",
    "args_get": "(param i32 i32) (result i32)",
    "sock_accept": "(param i32 i32 i32) (result i32)",
    "path_unlink_file": "(param i32 i32 i32) (result i32)",
    "poll_oneoff": "(param i32 i32 i32 i32) (result i32)",
}


def wasi(*names: str) -> str:
    return " ".join(f'(import "wasi_snapshot_preview1" "{name}" (func ${name} {_WASI[name]}))' for name in names)


WRITE = """
  (func $write (param $fd i32) (param $start i32) (param $size i32)
    (i32.store (i32.const 0) (local.get $start))
    (i32.store (i32.const 4) (local.get $size))
    (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func $read (param $fd i32) (param $start i32) (param $most i32) (result i32)
    (i32.store (i32.const 0) (local.get $start))
    (i32.store (i32.const 4) (local.get $most))
    (drop (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.load (i32.const 8)))
"""


def command(body: str, *imports: str, extra: str = "") -> str:
    """A WASI program; ``body`` is that of ``_start``, with a local ``$n``. ``$write``, ``$read`` are there."""
    return f"""(module {wasi("fd_read", "fd_write", *imports)}
  (memory (export "memory") 4) {WRITE} {extra}
  (func (export "_start") (local $n i32) {body}))"""


CAT = command(
    "(local.set $n (call $read (i32.const 0) (i32.const 4096) (i32.const 200000)))"
    "(call $write (i32.const 1) (i32.const 4096) (local.get $n))"
)
"""stdout is stdin."""


def opened(path: str, *, folder: int, write: bool = False) -> str:
    """A command that answers ``[error number]`` of opening ``path`` below the preopened folder, two digits; reads a file that
    it could open and prints what is in it."""
    flags, rights = (9, 0x40) if write else (0, 2)
    read = "(call $read (i32.load (i32.const 32)) (i32.const 4096) (i32.const 1000))"
    show = "" if write else f"(call $write (i32.const 1) (i32.const 4096) {read})"
    return command(
        f"""(local.set $n (call $path_open (i32.const {folder}) (i32.const 0) (i32.const 64) (i32.const {len(path)})
              (i32.const {flags}) (i64.const {rights}) (i64.const 0) (i32.const 0) (i32.const 32)))
        (if (i32.eqz (local.get $n)) (then
          {show}
          (call $write (i32.const 1) (i32.const 60) (i32.const 1))))
        (i32.store8 (i32.const 49) (i32.add (i32.const 48) (i32.div_u (local.get $n) (i32.const 10))))
        (i32.store8 (i32.const 50) (i32.add (i32.const 48) (i32.rem_u (local.get $n) (i32.const 10))))
        (i32.store8 (i32.const 48) (i32.const 34)) (i32.store8 (i32.const 51) (i32.const 34))
        (call $write (i32.const 1) (i32.const 48) (i32.const 4))""",
        "path_open",
        extra=f'(data (i32.const 60) "\\n") (data (i32.const 64) "{path}")',
    )


LOUD = command(
    """(call $write (i32.const 2) (i32.const 64) (i32.const 7))
    (call $write (i32.const 1) (i32.const 72) (i32.const 8))
    (call $write (i32.const 1) (i32.const 80) (i32.const 2))""",
    extra='(data (i32.const 64) "warned\\n") (data (i32.const 72) "printed\\n") (data (i32.const 80) "42")',
)
FAILS = command(
    "(call $write (i32.const 2) (i32.const 64) (i32.const 8)) (call $proc_exit (i32.const 3))",
    "proc_exit",
    extra='(data (i32.const 64) "bad luck")',
)
VARIABLES = command(
    """(drop (call $environ_sizes_get (i32.const 16) (i32.const 20)))
    (drop (call $environ_get (i32.const 1024) (i32.const 8192)))
    (drop (call $args_get (i32.const 512) (i32.const 65536)))
    (call $write (i32.const 1) (i32.const 65536) (i32.const 32))
    (call $write (i32.const 1) (i32.const 8192) (i32.load (i32.const 20)))""",
    "environ_get",
    "environ_sizes_get",
    "args_get",
)
PIECES = command(
    """(local.set $n (i32.const 40))
    (loop $again
      (call $write (i32.const 1) (i32.const 4096) (i32.const 4096))
      (local.set $n (i32.sub (local.get $n) (i32.const 1)))
      (br_if $again (local.get $n)))"""
)
"""160 KiB in forty pieces."""
SLEEPS = command(
    """(i64.store (i32.const 4096) (i64.const 1)) (i32.store8 (i32.const 4104) (i32.const 0))
    (i32.store (i32.const 4112) (i32.const 1)) (i64.store (i32.const 4120) (i64.const 600000000000))
    (drop (call $poll_oneoff (i32.const 4096) (i32.const 8192) (i32.const 1) (i32.const 12)))""",
    "poll_oneoff",
)
"""Ten minutes, in the host's call for it."""
