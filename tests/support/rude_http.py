# SPDX-License-Identifier: MIT
"""HTTP servers of tests: one that answers as a test says, and a proxy that loses or repeats messages."""

from __future__ import annotations

import http.client
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator


@dataclass
class Request:
    """A request as the server got it."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Script:
    """What a server does with each request: ``answer`` gets the handler and the request."""

    answer: Callable[[BaseHTTPRequestHandler, Request], None]
    requests: list[Request] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    """Set once the server ends: an answer that hangs waits for it."""
    url: str = ""


def reply(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: bytes = b"",
    kind: str = "application/json",
    **more: str,
) -> None:
    """Answer with a status, a body and more headers."""
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in more.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serve(script: Script, context: ssl.SSLContext | None = None) -> Iterator[Script]:
    """A server that follows the script until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            request = Request(self.path, dict(self.headers), body)
            if script.over.is_set():  # a kept connection outlives the server's socket
                self.close_connection = True
                return
            script.requests.append(request)
            script.answer(self, request)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that went away is part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http"
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    script.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        script.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def forward(request: Request, url: str) -> tuple[int, bytes]:
    """Send a request on to the real server. Returns the status and the body of the answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        headers = {name: value for name, value in request.headers.items() if name != "Host"}
        connection.request("POST", request.path, request.body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
