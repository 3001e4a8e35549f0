"""The first process of a build: runs one command as its child, buries orphans and reports how the command ended.

Guest-side code: standard library only.
"""

import os
import signal
from typing import NoReturn

from nova.execution.backends.sandbox import kernel


def run(argv: list[str], env: dict[str, str], cwd: str, output: int, status: int) -> NoReturn:
    """Run ``argv`` with its stdout and stderr in ``output``; write ``exit CODE`` or ``signal NUMBER`` to ``status``.

    Ends when the command itself does; whatever it left running ends with this process.
    """
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    pid = os.fork()
    if pid == 0:
        _become(argv, env, cwd, output)
    os.close(output)
    while True:
        dead, wait_status = os.wait()
        if dead == pid:
            code = os.waitstatus_to_exitcode(wait_status)
            os.write(status, f"exit {code}\n".encode() if code >= 0 else f"signal {-code}\n".encode())
            os._exit(0)


def _become(argv: list[str], env: dict[str, str], cwd: str, output: int) -> NoReturn:
    try:
        os.setsid()
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(output, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
