"""The function of the conformance suite (``tests/backends/guest.py``) as a WASI program, in the text format."""

from tests.backends.wasm.modules import WRITE, wasi

INPUT, SPACE, VARIABLES = 1 << 17, 1 << 20, 1 << 16
"""Where things are in memory: the input, a MiB to write, the environment."""
_TEXTS = 1 << 12
ERRORS = {
    8: "EBADF",
    2: "EACCES",
    44: "ENOENT",
    51: "ENOSPC",
    58: "ENOTSUP",
    63: "EPERM",
    69: "EROFS",
    76: "ENOTCAPABLE",
}
"""Of WASI."""
_TRIES = (
    ("read passwords (/etc/shadow)", 3, "../../etc/shadow", False),
    ("read a file by its absolute path", 5, "/etc/passwd", False),
    ("read the memory of process 1", 4, "../proc/1/mem", False),
    ("read the environment of process 1", 4, "../proc/1/environ", False),
    ("read the host's memory", 5, "../dev/mem", False),
    ("write its own code", 4, "main.py", True),
    ("write its input", 3, "input.json", True),
    ("write system files", 5, "../etc/passwd", True),
    ("change the kernel's settings", 5, "../proc/sys/kernel/hostname", True),
)
"""what, the preopened folder, the path below it, whether to write"""
_FUNCTIONS = """
  (func $find (param $text i32) (param $size i32) (param $at i32) (param $end i32) (result i32) (local $same i32)
    (loop $next
      (if (i32.gt_u (i32.add (local.get $at) (local.get $size)) (local.get $end)) (then (return (i32.const 0))))
      (local.set $same (i32.const 0))
      (block $other
        (loop $more
          (br_if $other (i32.eq (local.get $same) (local.get $size)))
          (br_if $other (i32.ne (i32.load8_u (i32.add (local.get $at) (local.get $same)))
                                (i32.load8_u (i32.add (local.get $text) (local.get $same)))))
          (local.set $same (i32.add (local.get $same) (i32.const 1)))
          (br $more)))
      (if (i32.eq (local.get $same) (local.get $size)) (then (return (i32.add (local.get $at) (local.get $size)))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $next))
    (unreachable))
  (func $number (param $at i32) (result i32) (local $value i32) (local $digit i32)
    (block $done (loop $next
      (local.set $digit (i32.sub (i32.load8_u (local.get $at)) (i32.const 48)))
      (br_if $done (i32.gt_u (local.get $digit) (i32.const 9)))
      (local.set $value (i32.add (i32.mul (local.get $value) (i32.const 10)) (local.get $digit)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $next)))
    (local.get $value))
  (func $say_number (param $value i32)
    (i32.store8 (i32.const 100) (i32.add (i32.const 48) (i32.div_u (local.get $value) (i32.const 10))))
    (i32.store8 (i32.const 101) (i32.add (i32.const 48) (i32.rem_u (local.get $value) (i32.const 10))))
    (if (i32.lt_u (local.get $value) (i32.const 10))
      (then (call $write (i32.const 1) (i32.const 101) (i32.const 1)))
      (else (call $write (i32.const 1) (i32.const 100) (i32.const 2)))))
  (func $sleep (param $ns i64)
    (i64.store (i32.const 256) (i64.const 1)) (i32.store8 (i32.const 264) (i32.const 0))
    (i32.store (i32.const 272) (i32.const 1)) (i64.store (i32.const 280) (local.get $ns))
    (i64.store (i32.const 288) (i64.const 0)) (i32.store16 (i32.const 296) (i32.const 0))
    (drop (call $poll_oneoff (i32.const 256) (i32.const 320) (i32.const 1) (i32.const 12))))
  (func $open (param $folder i32) (param $path i32) (param $size i32) (param $flags i32) (param $rights i64) (result i32)
    (call $path_open (local.get $folder) (i32.const 0) (local.get $path) (local.get $size) (local.get $flags)
      (local.get $rights) (i64.const 0) (i32.const 0) (i32.const 32)))
"""


class _Texts:
    """Text in the module's memory; each is an address and a size as two operands."""

    def __init__(self) -> None:
        self._next = _TEXTS
        self.data: list[str] = []

    def __call__(self, text: str) -> str:
        size = len(text.encode())
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        self.data.append(f'(data (i32.const {self._next}) "{escaped}")')
        self._next += size
        return f"(i32.const {self._next - size}) (i32.const {size})"


def program() -> str:
    text = _Texts()

    def say(what: str, fd: int = 1) -> str:
        return f"(call $write (i32.const {fd}) {text(what)})"

    def member(name: str) -> str:
        """Where its value begins; 0 without it."""
        return f"(call $find {text(f'{chr(34)}{name}{chr(34)}: ')} (i32.const {INPUT}) (local.get $end))"

    def fail(error: str) -> str:
        return f"{say(error, 2)} (call $proc_exit (i32.const 1))"

    def error_name() -> str:
        cases = "".join(
            f"(if (i32.eq (local.get $n) (i32.const {number})) (then {say(chr(34) + name + chr(34))} (return)))"
            for number, name in {0: "done", **ERRORS}.items()
        )
        return f"(func $say_error (param $n i32) {cases} {say(chr(34) + 'refused' + chr(34))})"

    def attempts() -> str:
        found = []
        for number, (what, folder, path, write) in enumerate(_TRIES):
            flags, rights = (1, 0x40) if write else (0, 2)
            found.append(say(f'{"{" if number == 0 else ", "}"{what}": '))
            opened = f"(call $open (i32.const {folder}) {text(path)} (i32.const {flags}) (i64.const {rights}))"
            found.append(f"(call $say_error {opened})")
        found.append(say(', "take a connection": '))
        found.append("(call $say_error (call $sock_accept (i32.const 3) (i32.const 0) (i32.const 16)))")
        return "\n".join([*found, say("}")])

    value = f"""(local.set $at {member("value")})
      {say("said ")}
      (if (i32.eq (i32.load8_u (local.get $at)) (i32.const 34))
        (then (call $write (i32.const 1) (i32.add (local.get $at) (i32.const 1))
          (i32.sub (i32.sub (local.get $end) (local.get $at)) (i32.const 3))))
        (else (call $write (i32.const 1) (local.get $at) (i32.sub (i32.sub (local.get $end) (local.get $at)) (i32.const 1)))))
      {say(chr(10))} {say("warned" + chr(10), 2)}
      (call $write (i32.const 1) (local.get $at) (i32.sub (i32.sub (local.get $end) (local.get $at)) (i32.const 1)))"""
    variable = f"""(drop (call $environ_sizes_get (i32.const 16) (i32.const 20)))
      (drop (call $environ_get (i32.const 16384) (i32.const {VARIABLES})))
      (local.set $at (call $find {text("GREETING=")} (i32.const {VARIABLES}) (i32.const {INPUT})))
      (local.set $n (local.get $at))
      (loop $next
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $next (i32.load8_u (local.get $n))))
      {say(chr(34))} (call $write (i32.const 1) (local.get $at) (i32.sub (local.get $n) (local.get $at))) {say(chr(34))}"""
    piece = text("piece 0")
    stream = f"""(local.set $n (call $number {member("pieces")}))
      (loop $next
        (call $write (i32.const 1) {piece})
        (i32.store8 (i32.add (i32.const 6) {piece.split(" (")[0]})
          (i32.add (i32.const 1) (i32.load8_u (i32.add (i32.const 6) {piece.split(" (")[0]}))))
        (if {member("pause")} (then (call $sleep (i64.const 100000000))))
        (local.set $n (i32.sub (local.get $n) (i32.const 1)))
        (br_if $next (local.get $n)))"""
    big = text("big")
    disk = f"""(drop (call $open (i32.const 5) {big} (i32.const 9) (i64.const 0x40)))
      (local.set $at (i32.const 0))
      (i32.store (i32.const 0) (i32.const {SPACE})) (i32.store (i32.const 4) (i32.const 1048576))
      (block $done (loop $next
        (br_if $done (i32.ge_u (local.get $at) (i32.shl (call $number {member("most")}) (i32.const 20))))
        (local.set $n (call $fd_write (i32.load (i32.const 32)) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br_if $done (local.get $n))
        (local.set $at (i32.add (local.get $at) (i32.load (i32.const 8))))
        (br $next)))
      (drop (call $path_unlink_file (i32.const 5) {big}))
      {say("[")} (call $say_number (i32.shr_u (local.get $at) (i32.const 20))) {say(", ")}
      (call $say_error (local.get $n)) {say("]")}"""
    what = {
        "echo": value,
        "raise": fail('{"type": "LookupError", "message": "as asked"}'),
        "env": variable,
        "stream": stream,
        "attack": attempts(),
        "disk": disk,
        "hoard": "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)",
        "spin": "(loop $again (br $again))",
        "exit": f"(call $proc_exit (call $number {member('code')}))",
        "orphan": say("null"),
        "sleep": "(call $sleep (i64.const 600000000000))",
    }
    doing = "".join(
        f"(if (call $find {text(f'{chr(34)}do{chr(34)}: {chr(34)}{name}{chr(34)}')} (i32.const {INPUT}) (local.get $end))"
        f" (then {body} (return)))"
        for name, body in what.items()
    )
    other = fail('{"type": "NotTranslated", "message": "a module has no processes, sockets or mounted folders"}')
    errors = error_name()
    imports = wasi(
        *("fd_read", "fd_write", "proc_exit", "path_open", "environ_get", "environ_sizes_get", "sock_accept"),
        *("poll_oneoff", "path_unlink_file"),
    )
    return f"""(module {imports}
  (memory (export "memory") 40)
  {" ".join(text.data)}
  {WRITE} {_FUNCTIONS} {errors}
  (func (export "_start") (local $n i32) (local $at i32) (local $end i32)
    (local.set $end (i32.const {INPUT}))
    (loop $next
      (local.set $n (call $read (i32.const 0) (local.get $end) (i32.const 1000000)))
      (local.set $end (i32.add (local.get $end) (local.get $n)))
      (br_if $next (local.get $n)))
    {doing}
    {other}))"""
