#!/usr/bin/python3 -I
# SPDX-License-Identifier: MIT
"""A hypervisor without manners: it runs no VM, and answers as /run/canary-rude says.

``echo`` and ``boot`` refuse vm.create or vm.boot with what was sent as the reason, ``die`` ends
by SIGSEGV in the middle of a request, ``gone`` hangs up, ``hang`` and ``mute`` never answer to a request or
when asked for the version. Anything else is polite. Standard library only.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

HOW = Path("/run/canary-rude").read_text(encoding="ascii")


def read_request(connection: socket.socket) -> bytes:
    """One whole HTTP request."""
    request = b""
    while True:
        head, separator, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *([0-9]+)", head)
        if separator and len(body) >= (int(length[1]) if length else 0):
            return request
        chunk = connection.recv(65536)
        if not chunk:
            return request
        request += chunk


def main() -> None:
    """Serve until a signal ends it."""
    if "--version" in sys.argv:
        if HOW == "mute":
            signal.pause()
        print("cloud-hypervisor v53.0.0")  # noqa: T201 (its output)
        return
    path = sys.argv[sys.argv.index("--api-socket") + 1].removeprefix("path=")
    with suppress(FileNotFoundError):
        Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    heard = b""
    while True:
        connection, _ = listener.accept()
        heard += read_request(connection)
        if HOW == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if HOW == "hang":
            signal.pause()
        if HOW != "gone":
            refused = HOW == "echo" or (HOW == "boot" and b"vm.boot" in heard)
            # The telling part first: a launcher that quoted an answer would quote its beginning.
            telling = heard[max(0, heard.find(b"oem_strings")) :]
            status, body = (b"500 Sorry", telling) if refused else (b"204 Fine", b"")
            connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        connection.close()


if __name__ == "__main__":
    main()
