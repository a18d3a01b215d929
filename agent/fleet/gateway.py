# SPDX-License-Identifier: MIT
"""One member of etcd, asked through its HTTP gateway.

With authentication on, the gateway needs a token for a user and a password. It then refuses client
certificates that have a CommonName, so that nobody takes the name for a user. A token ends when it was not
used for five minutes, and when the user's password changes.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from credferry.agent.fleet import transactions
from credferry.agent.fleet.transport import EngineFault, Tls, session

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import requests

    from credferry.agent.fleet.transactions import Txn, TxnAnswer

_PORT: Final = 2379
_OK: Final = 200
_NOT_JSON: Final = "not JSON"
_TOKEN_MAX: Final = 4096
_PASSWORD_MAX: Final = 4096
_STALE: Final = ("invalid auth token", "revision of auth store is old", "user name is empty")
_COMMON_NAME: Final = "CommonName of client"
_KNOWN: Final = {
    "database space exceeded": (
        "it is out of space and takes no writes",
        "compact and defragment etcd, and end its alarm",
    ),
    "no leader": ("its cluster has no quorum", "bring etcd's other members up"),
    "request timed out": ("its cluster did not answer in time", "bring etcd's other members up"),
    "leader changed": ("its cluster has just chosen another leader", "the agent retries"),
    "corrupt": ("its data are corrupt", "restore this member of etcd"),
    "permission denied": (
        "the user may not use the group's keys",
        "grant the user read and write below /credferry/1/",
    ),
    "authentication failed": (
        "it refuses the user or the password",
        "check `user` and `password_file` in [fleet]",
    ),
    "authentication is not enabled": (
        "it has no authentication",
        "leave out `user` in [fleet], or enable authentication in etcd",
    ),
    "user name is empty": (
        "it requires a user and a password",
        "set `user` and `password_file` in [fleet]",
    ),
    _COMMON_NAME: (
        "it refuses client certificates with a CommonName while authentication is on",
        "use a client certificate without a CommonName",
    ),
    "too many requests": ("it is overloaded", "the agent retries"),
}
"""Parts of etcd's messages, what they mean, and what to do. No other text of a server is repeated."""


@dataclass(frozen=True, slots=True)
class Login:
    """An etcd user, and the file that has the password."""

    user: str
    password_file: Path


@dataclass(slots=True)
class Member:
    """One member of etcd. Threads take turns; a call that fails raises `EngineFault`."""

    url: str
    tls: Tls
    login: Login | None
    seconds: float
    _session: requests.Session = field(init=False, repr=False)
    _has_token: bool = False
    date: str = ""
    """The header ``Date`` of its last answer, for the doctor; empty without one."""

    def __post_init__(self) -> None:
        self._session = session(self.tls, self.seconds)

    def transaction(self, txn: Txn) -> TxnAnswer:
        """Carry out a transaction. Raises `EngineFault`; the transaction may have had its effect then."""
        document = self.call("/kv/txn", txn)
        try:
            return transactions.answer(document)
        except transactions.AnswerError:
            pass
        raise EngineFault(
            "it does not answer as etcd does", "check that the URL is etcd's, version 3.4 or later"
        )

    def call(self, path: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401 (whatever JSON is)
        """Call the gateway, logged in if there is a login. Raises `EngineFault` as `transaction` does."""
        if self.login is not None and not self._has_token:
            self._authenticate(self.login)
        document, refusal = self._post(path, body)
        if self.login is not None and any(each in refusal for each in _STALE):
            # etcd has refused it before any effect.
            self._authenticate(self.login)
            document, refusal = self._post(path, body)
        if refusal:
            raise _refused(refusal)
        return document

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _authenticate(self, login: Login) -> None:
        self._has_token = False
        self._session.headers.pop("Authorization", None)
        body = {"name": login.user, "password": _password(login.password_file)}
        document, refusal = self._post("/auth/authenticate", body)
        if refusal:
            raise _refused(refusal)
        token = document.get("token") if isinstance(document, dict) else None
        if not isinstance(token, str) or not 0 < len(token) <= _TOKEN_MAX or not _is_plain(token):
            raise EngineFault("it gives no token", "check that the URL is etcd's, and its version")
        self._session.headers["Authorization"] = token
        self._has_token = True

    def _post(self, path: str, body: Mapping[str, Any]) -> tuple[Any, str]:
        """The answer, and the text of a refusal: one of them is empty. Raises `EngineFault`."""
        response = self._session.post(f"{_base(self.url)}/v3{path}", json=body)
        self.date = response.headers.get("Date", "")
        try:
            document = msgspec.json.decode(response.content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # This one refusal is plain text.
            is_known = response.status_code != _OK and _COMMON_NAME.encode() in response.content
            return None, _COMMON_NAME if is_known else _NOT_JSON
        return (document, "") if response.status_code == _OK else (None, _message(document))


def _base(url: str) -> str:
    """The URL with etcd's port, where it names none."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" + ("" if parts.port else f":{_PORT}")


def _message(document: object) -> str:
    """What an error answer says: 3.4 has ``error``, and both have ``message``."""
    found = document.get("message") or document.get("error") if isinstance(document, dict) else None
    return found if isinstance(found, str) and found else "no reason"


def _refused(message: str) -> EngineFault:
    for part, meaning in _KNOWN.items():
        if part in message:
            return EngineFault(*meaning)
    if message == _NOT_JSON:
        return EngineFault(
            "it does not answer as etcd does", "check that the URL is etcd's, version 3.4 or later"
        )
    return EngineFault("it refuses the request", "see etcd's log")


def _is_plain(token: str) -> bool:
    return token.isascii() and token.isprintable()


def _password(file: Path) -> str:
    """The password, without a newline at its end. Raises `EngineFault`, which never has any of it."""
    content: bytes | None = None
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                content = opened.read(_PASSWORD_MAX + 1)
    except OSError:
        pass
    if content is None:
        raise EngineFault(f"{file}: cannot read the password", "check `password_file` in [fleet]")
    text = content.decode("utf-8", "replace").removesuffix("\n")
    if not 0 < len(text) <= _PASSWORD_MAX or not text.isprintable():
        raise EngineFault(f"{file}: not a password on one line", "check `password_file` in [fleet]")
    return text
