# SPDX-License-Identifier: MIT
"""HTTP sessions that end in time: no redirect, no proxy, no netrc, and answers of a bounded size.

requests limits each wait for bytes, not a whole answer: a timer ends the connection of an answer that takes
too long. The exceptions of requests hold the request, with the password in its body. So none leaves this
module.

Debian and nixpkgs have requests. Clients of etcd for Python need gRPC, or libraries that nixpkgs does not
have, and the agent would use one call of them.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import requests
import urllib3
from requests.adapters import HTTPAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_MAX: Final = 4 << 20
"""Bytes of an answer. A group with 2,000 slots stays below it."""
_PART: Final = 1 << 16


class EngineFault(Exception):  # noqa: N818 (a value that is carried by raising it)
    """A server did not answer, or its answer cannot be used. It holds nothing of the request.

    It is raised where no other exception is handled, so it holds no other one as its context.
    """

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for TLS: who signed the server's certificate, and the client's certificate with its key."""

    ca: str
    certificate: str = ""
    key: str = ""


def session(tls: Tls, seconds: float) -> requests.Session:
    """A session that keeps its connections. A call that fails raises `EngineFault`.

    ``seconds`` limits the connecting to each address of the server, and then the whole answer. The time for
    looking up the server's name is not limited here: see resolv.conf(5).
    """
    made = requests.Session()
    made.trust_env = False  # no proxy, no .netrc, no certificates from the environment
    made.verify = tls.ca  # without it, requests uses the certificates of certifi, not those of the host
    made.cert = (tls.certificate, tls.key) if tls.certificate else None
    made.headers.update({"Accept-Encoding": "identity", "User-Agent": "credferry"})
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Adapter(seconds))
    return made


class _Adapter(HTTPAdapter):
    """Carries each request, one at a time for each connection."""

    def __init__(self, seconds: float) -> None:
        super().__init__(pool_connections=1, pool_maxsize=2, max_retries=0)
        self._seconds = seconds
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def send(  # noqa: PLR0917 (requests' signature)
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: ARG002 (requests' signature)
        timeout: Any = None,  # noqa: ANN401, ARG002 (as requests' own)
        verify: bool | str = True,
        cert: Any = None,  # noqa: ANN401 (as requests' own)
        proxies: Any = None,  # noqa: ANN401, ARG002 (as requests' own)
    ) -> requests.Response:
        response: requests.Response | None = None
        body = b""
        fault: EngineFault | None = None
        with _Deadline(self._seconds) as deadline:
            try:
                response = super().send(
                    request, stream=True, timeout=self._seconds, verify=verify, cert=cert
                )
                body = _body(response)
            except EngineFault as error:
                fault = error
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                fault = _fault(error, self._seconds)
        if deadline.is_over:
            fault = _late(self._seconds)
        if fault is None and response is not None and response.is_redirect:
            fault = EngineFault(
                "it answers with a redirect", "name the server itself, not a proxy before it"
            )
        if fault is not None or response is None:
            if response is not None:
                response.raw.close()
            raise fault or EngineFault("no answer", "see the server's log")
        response.raw.release_conn()
        response.raw = io.BytesIO(body)
        return response


class _Deadline:
    """Ends the connection of this thread's request if its answer takes longer than ``seconds``."""

    of_thread: Final = threading.local()

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: threading.Timer | None = None
        self.is_over = False

    def __enter__(self) -> Self:
        self.of_thread.deadline = self
        return self

    def __exit__(self, *_: object) -> None:
        self.of_thread.deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()

    def begin(self, connection: socket.socket) -> None:
        """The request has been sent, and the answer begins."""
        self._timer = threading.Timer(self._seconds, self._end, [connection])
        self._timer.daemon = True
        self._timer.start()

    def _end(self, connection: socket.socket) -> None:
        self.is_over = True
        with contextlib.suppress(OSError):
            # Not the method of an SSLSocket, which would change it under the thread that reads.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Connection(urllib3.connection.HTTPConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3's own
        _begin(self.sock)
        return super().getresponse()


class _TlsConnection(urllib3.connection.HTTPSConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3's own
        _begin(self.sock)
        return super().getresponse()


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def _begin(connection: socket.socket | None) -> None:
    deadline: _Deadline | None = getattr(_Deadline.of_thread, "deadline", None)
    if deadline is not None and connection is not None:
        deadline.begin(connection)


def _body(response: requests.Response) -> bytes:
    parts = []
    size = 0
    while part := response.raw.read1(_PART, decode_content=False):
        parts.append(part)
        size += len(part)
        if size > ANSWER_MAX:
            raise EngineFault(f"its answer is longer than {ANSWER_MAX} bytes", "check that the URL is right")
    return b"".join(parts)


def _fault(error: BaseException, seconds: float) -> EngineFault:
    """An error of requests in words, by its causes. Of their texts, only fixed ones of TLS are used."""
    causes = list(_causes(error))
    for each in causes:
        if isinstance(each, ssl.SSLCertVerificationError):
            return EngineFault(
                f"its certificate is not valid: {each.verify_message}",
                "check `ca` in [fleet], the server's certificate, and this host's clock",
            )
    for each in causes:
        if isinstance(each, ssl.SSLError):
            return EngineFault(
                f"TLS failed: {str(each.reason or 'no reason given').replace('_', ' ').lower()}",
                "check `certificate` and `key` in [fleet], and that the server speaks TLS",
            )
    # urllib3's error for a refused connection is one of its timeouts, too.
    is_refused = any(isinstance(each, urllib3.exceptions.NewConnectionError) for each in causes)
    timeouts = (requests.Timeout, urllib3.exceptions.TimeoutError)
    if not is_refused and any(isinstance(each, timeouts) for each in causes):
        return _late(seconds)
    files = (FileNotFoundError, PermissionError, IsADirectoryError)
    # requests raises a plain OSError for a file that does not exist.
    if not is_refused and any(type(each) is OSError or isinstance(each, files) for each in causes):
        return EngineFault("a file for TLS cannot be read", "check `ca`, `certificate` and `key` in [fleet]")
    if any(isinstance(each, requests.ConnectionError | urllib3.exceptions.HTTPError) for each in causes):
        return EngineFault(
            "the connection failed or was closed", "check that the server runs, and the network"
        )
    return EngineFault("it cannot be asked", "check the URL")


def _late(seconds: float) -> EngineFault:
    return EngineFault(f"no answer within {seconds:g} s", "check the server and the network")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it. urllib3 keeps some causes in attributes and arguments."""
    seen: list[BaseException] = []
    left = [error]
    while left:
        each = left.pop(0)
        if each in seen:
            continue
        seen.append(each)
        yield each
        others = (each.__cause__, each.__context__, getattr(each, "reason", None), *each.args)
        left += [other for other in others if isinstance(other, BaseException)]
