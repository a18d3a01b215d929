# SPDX-License-Identifier: MIT
"""HTTP sessions that end in time: no redirect, no proxy, no netrc, and answers of a bounded size.

requests limits each wait for bytes, not a whole answer, and its exceptions hold the request, with the
password in its body. So an exception of requests never leaves this module.
"""

from __future__ import annotations

import io
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

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

    ``seconds`` limits the connecting, each wait for a part of the answer's headers, and the whole body.
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
    def __init__(self, seconds: float) -> None:
        super().__init__(pool_connections=1, pool_maxsize=2, max_retries=0)
        self._seconds = seconds

    def send(  # noqa: PLR0917 (requests' signature)
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: ARG002 (requests' signature)
        timeout: Any = None,  # noqa: ANN401, ARG002
        verify: bool | str = True,
        cert: Any = None,  # noqa: ANN401
        proxies: Any = None,  # noqa: ANN401, ARG002
    ) -> requests.Response:
        end = time.monotonic() + self._seconds
        response: requests.Response | None = None
        body = b""
        fault: EngineFault | None = None
        try:
            response = super().send(request, stream=True, timeout=self._seconds, verify=verify, cert=cert)
            body = _body(response, end)
        except EngineFault as error:
            fault = error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            fault = _fault(error, self._seconds)
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


def _body(response: requests.Response, end: float) -> bytes:
    parts = []
    size = 0
    while part := response.raw.read1(_PART, decode_content=False):
        parts.append(part)
        size += len(part)
        if size > ANSWER_MAX:
            raise EngineFault(f"its answer is longer than {ANSWER_MAX} bytes", "check that the URL is right")
        if time.monotonic() > end:
            raise EngineFault("its answer does not end", "check the server and the network")
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
        return EngineFault(f"no answer within {seconds:g} s", "check the server and the network")
    files = (FileNotFoundError, PermissionError, IsADirectoryError)
    # requests raises a plain OSError for a file that does not exist.
    if not is_refused and any(type(each) is OSError or isinstance(each, files) for each in causes):
        return EngineFault("a file for TLS cannot be read", "check `ca`, `certificate` and `key` in [fleet]")
    if any(isinstance(each, requests.ConnectionError | urllib3.exceptions.HTTPError) for each in causes):
        return EngineFault(
            "the connection failed or was closed", "check that the server runs, and the network"
        )
    return EngineFault("it cannot be asked", "check the URL")


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
