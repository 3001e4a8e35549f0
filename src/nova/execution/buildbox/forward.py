"""First process of a build step: a door on the sandbox's own loopback that leads to the registry proxy's unix socket.

    forward.py SOCKET COMMAND [ARGUMENT …]

Runs the command with ``HTTP(S)_PROXY`` naming that door, and ends as it ended. There is no other way out of the sandbox.
Guest-side code: standard library only, imports nothing of Nova.
"""

import os
import socket
import subprocess
import sys
import threading

_CHUNK = 65536


def main(socket_path: str, command: list[str]) -> int:
    door = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(door, socket_path), daemon=True).start()
    proxy = f"http://127.0.0.1:{door.getsockname()[1]}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    code = subprocess.call(command, env={**os.environ, **dict.fromkeys(names, proxy)})
    return code if code >= 0 else 128 - code


def _serve(door: socket.socket, socket_path: str) -> None:
    while True:
        inner, _ = door.accept()
        outer = socket.socket(socket.AF_UNIX)
        try:
            outer.connect(socket_path)
        except OSError:
            outer.close()
            inner.close()
            continue
        for source, sink in ((inner, outer), (outer, inner)):
            threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the end of ``source``, then tell ``sink`` so. Both close when the other direction has ended too."""
    try:
        while data := source.recv(_CHUNK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            end.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
