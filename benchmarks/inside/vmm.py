# SPDX-License-Identifier: MIT
"""The least of hypervisors: ends at once, or listens at ``--api-socket`` until the VM is to be booted.

With ``--listen`` it ends as soon as it would listen: a bare start. Standard library only.
"""

from __future__ import annotations

import os
import socket
import sys

_ANSWER = b"HTTP/1.1 204 No Content\r\nServer: Cloud Hypervisor API\r\n\r\n"


def _request(stream: socket.socket, pending: bytes) -> tuple[bytes, bytes]:
    """One request's first line, and what has come after it; nothing where the other end hung up."""
    while b"\r\n\r\n" not in pending:
        data = stream.recv(65536)
        if not data:
            return b"", b""
        pending += data
    head, _, rest = pending.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.lower() == b"content-length":
            length = int(value)
        if key.lower() == b"expect":
            stream.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while len(rest) < length:
        rest += stream.recv(65536)
    return head.partition(b"\r\n")[0], rest[length:]


def main() -> None:
    """Entry point."""
    words = sys.argv[1:]
    if "--version" in words:
        sys.stdout.write("cloud-hypervisor v53.0\n")
        return
    path = words[words.index("--api-socket") + 1].removeprefix("path=")
    if os.path.exists(path):  # noqa: PTH110 (pathlib takes longer to import than all of this)
        os.unlink(path)  # noqa: PTH108 (see above)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        if "--listen" in words:
            return
        while True:
            stream, _ = listener.accept()
            with stream:
                pending = b""
                while True:
                    asked, pending = _request(stream, pending)
                    if not asked:
                        break
                    stream.sendall(_ANSWER)
                    if b"vm.boot" in asked:
                        return


if __name__ == "__main__":
    main()
