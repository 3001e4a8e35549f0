"""Changing the packet filter: libnftables in this process, or the ``nft`` program where the library is not found.

A change by the library takes a few tenths of a millisecond. Starting the program takes several, and removing rules with
it far more, because every start reads the whole rule set.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess

_LIBRARY = "libnftables.so.1"


def find_nft() -> str | None:
    return shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


class Nftables:
    """The filter of the network namespace in which this object is made. For one thread."""

    def __init__(self) -> None:
        """Raises OSError when neither the library nor the program is here."""
        self._library: ctypes.CDLL | None = None
        with contextlib.suppress(OSError):
            self._library = _load()
        self._program = find_nft()
        if self._library is not None:
            self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
            self._library.nft_ctx_buffer_error(self._context)
            self._library.nft_ctx_buffer_output(self._context)
        elif self._program is None:
            raise OSError("neither libnftables nor the nft program is installed")

    def close(self) -> None:
        if self._library is not None:
            self._library.nft_ctx_free(self._context)
            self._library = None

    def apply(self, rules: str) -> None:
        """One transaction: all of ``rules`` or none. Raises OSError with the filter's first complaint."""
        self._run(rules)

    def tables(self) -> list[str]:
        """The words of ``list tables``: families and names."""
        return self._run("list tables\n").split()

    def _run(self, commands: str) -> str:
        if self._library is not None:
            failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
            output: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
            complaint: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
            if failed:
                raise OSError(f"nft: {_first_line(complaint.decode(errors='replace'))}")
            return output.decode()
        assert self._program is not None
        done = subprocess.run([self._program, "-f", "-"], input=commands, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"nft: {_first_line(done.stderr) or done.returncode}")
        return done.stdout


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(_LIBRARY)
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("buffer_error", "buffer_output", "get_error_buffer", "get_output_buffer", "free"):
        getattr(library, f"nft_ctx_{name}").argtypes = [ctypes.c_void_p]
    return library
