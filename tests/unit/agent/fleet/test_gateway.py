# SPDX-License-Identifier: MIT
"""Members of etcd behind TLS and a password, and servers that answer what etcd does not."""

from __future__ import annotations

import gzip
import json
import os
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.fleet.etcd import Etcd
from credferry.agent.fleet.gateway import Login, Member
from credferry.agent.fleet.model import Applied, Granted, Holder, Unavailable
from credferry.agent.fleet.transport import ANSWER_MAX, Tls
from tests.support.certificates import Authority
from tests.support.etcd import NO_TLS, RealEtcd, call
from tests.support.rude_http import Request, Script, reply, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

ME = Holder("h1", "web", "1" * 32)
PASSWORD = "correct-horse-battery"
TOKEN = "token-of-a-session"


@dataclass(frozen=True)
class Guarded:
    """An etcd with TLS, client certificates, and users with passwords."""

    etcd: RealEtcd
    authority: Authority
    tls: Tls
    directory: Path

    def engine(self, user: str = "agent", password: str = PASSWORD, tls: Tls | None = None) -> Etcd:
        """An engine that logs in."""
        file = self.directory / f"password-{time.monotonic_ns()}"
        file.write_text(f"{password}\n")
        return Etcd([self.etcd.member(tls=tls or self.tls, login=Login(user, file))])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """An etcd for all tests here, with a user ``agent`` that may use credferry's keys."""
    directory = tmp_path_factory.mktemp("guarded")
    authority = Authority.make(directory / "ca")
    certificate, key = authority.issue("server")
    options = ["--cert-file", certificate, "--key-file", key]
    options += ["--client-cert-auth", "--trusted-ca-file", authority.ca]
    etcd = RealEtcd(directory, *options, scheme="https")
    tls = Tls(authority.ca, *authority.issue("client"))
    member = etcd.member(tls=tls)
    range_ = {"key": "L2NyZWRmZXJyeS8xLw==", "range_end": "L2NyZWRmZXJyeS8xMA=="}  # /credferry/1/
    call(member, "/auth/role/add", name="root")
    call(member, "/auth/role/add", name="credferry")
    call(member, "/auth/role/grant", name="credferry", perm={"permType": "READWRITE", **range_})
    for user, password, role in (("root", "root", "root"), ("agent", PASSWORD, "credferry")):
        call(member, "/auth/user/add", name=user, password=password)
        call(member, "/auth/user/grant", user=user, role=role)
    call(member, "/auth/user/add", name="stranger", password=PASSWORD)
    call(member, "/auth/enable")
    yield Guarded(etcd, authority, tls, directory)
    etcd.kill()


def test_tls_and_a_password(guarded: Guarded) -> None:
    """With a client certificate, a user and a password, slots are taken and given back."""
    engine = guarded.engine()
    assert engine.acquire("web", ME, "r") == Granted(0)
    assert engine.release("web", ME) == Applied(1)


def reason(found: object) -> str:
    """The reason of an engine that is not available. It holds no password."""
    assert isinstance(found, Unavailable)
    assert PASSWORD not in f"{found!r}"
    assert found.hint
    return found.reason


def test_a_wrong_password_or_user(guarded: Guarded) -> None:
    """A wrong login is named as one, with the keys to check, and never with the password."""
    for user, password in (("agent", "wrong"), ("nobody", PASSWORD)):
        found = guarded.engine(user, password).acquire("web", ME, "r")
        assert "it refuses the user or the password" in reason(found)
    assert "may not use the group's keys" in reason(guarded.engine("stranger").acquire("web", ME, "r"))
    found = Etcd([guarded.etcd.member(tls=guarded.tls)]).acquire("web", ME, "r")
    assert "it requires a user and a password" in reason(found), "a client's certificate is no user"


def test_a_client_certificate_with_a_common_name(guarded: Guarded) -> None:
    """With authentication on, etcd's gateway refuses such a certificate, and the reason says so."""
    tls = Tls(guarded.authority.ca, *guarded.authority.issue("named"))
    assert "CommonName" in reason(guarded.engine(tls=tls).state("web"))


def test_certificates_that_do_not_fit(guarded: Guarded, tmp_path: Path) -> None:
    """A server that another authority signed, and a client without or with a foreign certificate, fail."""
    other = Authority.make(tmp_path / "other")
    foreign = Tls(other.ca, guarded.tls.certificate, guarded.tls.key)
    assert "its certificate is not valid" in reason(guarded.engine(tls=foreign).state("web"))
    for tls in (Tls(guarded.authority.ca), Tls(guarded.authority.ca, *other.issue("client"))):
        # TLS 1.3: the server's refusal may arrive as an alert or as a closed connection.
        assert "TLS failed" in (said := reason(guarded.engine(tls=tls).state("web"))) or "closed" in said
    expired = Tls(guarded.authority.ca, *guarded.authority.issue("expired", days=-1))
    assert "TLS failed" in (said := reason(guarded.engine(tls=expired).state("web"))) or "closed" in said


def test_files_that_are_missing(guarded: Guarded, tmp_path: Path) -> None:
    """Files for TLS that are missing, and password files that are none, are named. Nothing hangs."""
    missing = str(tmp_path / "missing")
    for tls in (Tls(missing), Tls(guarded.tls.ca, missing, guarded.tls.key)):
        assert "a file for TLS cannot be read" in reason(guarded.engine(tls=tls).state("web"))
    (tmp_path / "empty").write_text("\n")
    os.mkfifo(tmp_path / "fifo")
    for name, said in (("missing", "cannot read"), ("empty", "not a password"), ("fifo", "cannot read")):
        login = Login("agent", tmp_path / name)
        found = Etcd([guarded.etcd.member(tls=guarded.tls, login=login)]).state("web")
        assert said in reason(found)
        assert str(tmp_path / name) in reason(found)


def as_root(guarded: Guarded, path: str, **body: object) -> dict[str, Any]:
    """Call etcd as an operator."""
    member = guarded.engine("root", "root").members[0]
    member.transaction({})  # which logs in
    return call(member, path, **body)


def test_an_etcd_without_space(guarded: Guarded) -> None:
    """An etcd that takes no writes gives no slot, and the reason says why. It does take a slot back."""
    engine = guarded.engine()
    assert engine.acquire("full", ME, "r") == Granted(0)
    alarm = {"memberID": as_root(guarded, "/maintenance/status")["header"]["member_id"], "alarm": "NOSPACE"}
    as_root(guarded, "/maintenance/alarm", action="ACTIVATE", **alarm)
    try:
        assert "out of space" in reason(engine.acquire("full", ME, "r")), "a slot is kept by writing it"
        assert engine.release("full", ME) == Applied(1)
        for found in (engine.acquire("full", ME, "r"), engine.halt("full", ME, "r", "x")):
            assert "out of space" in reason(found)
    finally:
        as_root(guarded, "/maintenance/alarm", action="DEACTIVATE", **alarm)
    assert isinstance(engine.acquire("full", ME, "r"), Granted)


def test_a_compacted_etcd(guarded: Guarded) -> None:
    """Nothing depends on old revisions: slots are kept and given back after a compaction."""
    engine = guarded.engine()
    assert engine.acquire("old", ME, "r") == Granted(0)
    revision = as_root(guarded, "/kv/range", key="AA==")["header"]["revision"]
    as_root(guarded, "/kv/compaction", revision=revision, physical=True)
    assert engine.acquire("old", ME, "r") == Granted(0, again=True)
    assert engine.release("old", ME) == Applied(1)


def test_etcd_that_restarts_and_other_users_that_change(guarded: Guarded) -> None:
    """After etcd's restart, and after a change of its users, an engine that has logged in goes on."""
    engine = guarded.engine()
    assert engine.acquire("web", ME, "r") == Granted(0)
    guarded.etcd.kill()
    guarded.etcd.start()
    assert engine.acquire("web", ME, "r") == Granted(0, again=True)
    as_root(guarded, "/auth/user/add", name="new", password="p")
    assert engine.release("web", ME) == Applied(1)


def test_a_password_that_rotates(guarded: Guarded, tmp_path: Path) -> None:
    """A new password ends the token. The engine then logs in again with what the file has."""
    file = tmp_path / "password"
    file.write_text("first")
    as_root(guarded, "/auth/user/add", name="rotating", password="first")
    as_root(guarded, "/auth/user/grant", user="rotating", role="credferry")
    engine = Etcd([guarded.etcd.member(tls=guarded.tls, login=Login("rotating", file))])
    assert engine.acquire("web", ME, "r") == Granted(0)
    as_root(guarded, "/auth/user/changepw", name="rotating", password="second")
    assert "refuses the user or the password" in reason(engine.acquire("web", ME, "r"))
    file.write_text("second\n")
    assert engine.acquire("web", ME, "r") == Granted(0, again=True)
    as_root(guarded, "/auth/user/changepw", name="rotating", password="third")
    file.write_text("third")
    assert engine.release("web", ME) == Applied(1)


def ask(script: Script, login: Login | None = None, seconds: float = 20.0) -> object:
    """What an engine says of a server that follows a script."""
    with serve(script):
        return Etcd([Member(script.url, NO_TLS, login, seconds)]).acquire("web", ME, "r")


def answers(status: int, body: bytes, kind: str = "application/json", **more: str) -> Script:
    """A server with one answer to everything."""
    return Script(lambda handler, _: reply(handler, status, body, kind, **more))


REFUSALS = {
    "etcdserver: no leader": "no quorum",
    "etcdserver: request timed out": "did not answer in time",
    "etcdserver: request timed out, possibly due to previous leader failure": "did not answer in time",
    "etcdserver: mvcc: database space exceeded": "out of space",
    "etcdserver: permission denied": "may not use",
    "etcdserver: authentication failed, invalid user ID or password": "refuses the user or the password",
    "etcdserver: corrupt cluster": "corrupt",
    "something else": "refuses the request",
}


@pytest.mark.parametrize("message", REFUSALS)
@pytest.mark.parametrize("form", ["3.4", "3.5"])
def test_what_etcd_refuses(message: str, form: str) -> None:
    """Each refusal of etcd, in the form of both releases, is said in words, with what to do."""
    more: dict[str, object] = {"error": message} if form == "3.4" else {"details": []}
    body = {"message": message, "code": 14, **more}
    for status in (400, 403, 500, 503, 504):
        assert REFUSALS[message] in reason(ask(answers(status, json.dumps(body).encode())))


HEADER: dict[str, Any] = {"cluster_id": "1", "member_id": "2", "revision": "3", "raft_term": "4"}
NO_ETCD = {
    "HTML": (200, b"<html><body>Welcome</body></html>", "text/html"),
    "an empty body": (200, b"", "application/json"),
    "null": (200, b"null", "application/json"),
    "a list": (200, b"[]", "application/json"),
    "no header": (200, b"{}", "application/json"),
    "no responses": (200, json.dumps({"header": HEADER}).encode(), "application/json"),
    "bytes": (200, b"\xff\xfe\x00", "application/json"),
    "depth": (200, b"[" * 100_000, "application/json"),
    "an error in HTML": (502, b"<html>Bad gateway</html>", "text/html"),
    "not found": (404, b"404 page not found", "text/plain"),
}


@pytest.mark.parametrize("name", NO_ETCD)
def test_what_is_no_etcd(name: str) -> None:
    """Another server's answers are never taken for a free slot, and none of their text is repeated."""
    found = ask(answers(*NO_ETCD[name]))
    assert "answer" in reason(found)
    assert "Welcome" not in f"{found!r}"


def test_a_redirect_is_not_followed() -> None:
    """A redirect is refused: the token would go to a server that nobody has named."""
    with serve(answers(200, b"{}")) as other:
        found = ask(answers(307, b"", Location=f"{other.url}/v3/kv/txn"))
        assert "redirect" in reason(found)
        assert other.requests == []


def hang(handler: BaseHTTPRequestHandler, script: Script) -> None:
    """Say nothing until the server ends."""
    script.over.wait()
    handler.close_connection = True


def drip(handler: BaseHTTPRequestHandler, script: Script) -> None:
    """Send a body without an end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000000")
    handler.end_headers()
    while not script.over.wait(0.02):
        handler.wfile.write(b" ")


def drip_headers(handler: BaseHTTPRequestHandler, script: Script) -> None:
    """Send a header without an end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not script.over.wait(0.02):
        handler.wfile.write(b"x")


def drip_chunks(handler: BaseHTTPRequestHandler, script: Script) -> None:
    """Send the length of a chunk without an end."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while not script.over.wait(0.02):
        handler.wfile.write(b"0")


@pytest.mark.parametrize("what", [hang, drip, drip_headers, drip_chunks])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_answers_that_take_too_long(
    what: Callable[[BaseHTTPRequestHandler, Script], None], scheme: str, tmp_path: Path
) -> None:
    """A server that hangs, or sends headers or a body a byte at a time, costs a call its deadline."""
    script = Script(lambda handler, _: what(handler, script))
    tls, context = NO_TLS, None
    if scheme == "https":
        authority = Authority.make(tmp_path / "ca")
        tls, context = Tls(authority.ca), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("server"))
    with serve(script, context):
        found = Etcd([Member(script.url, tls, None, 0.3)]).acquire("web", ME, "r")
    assert "no answer within 0.3 s" in reason(found)


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_an_answer_that_comes_twice(pause: float) -> None:
    """A second answer to one request, sent with the first one or after it, answers no later request."""
    granted = {"header": HEADER, "succeeded": True, "responses": [{"response_range": {}}] * 3}
    left = [json.dumps(granted).encode(), b"{}"]

    def twice(handler: BaseHTTPRequestHandler, _: Request) -> None:
        body = left.pop(0) if left else b"{}"
        reply(handler, 200, body)
        handler.wfile.flush()
        script.over.wait(pause)
        reply(handler, 200, body)
        handler.wfile.flush()
        sent.set()

    script, sent = Script(twice), threading.Event()
    with serve(script):
        engine = Etcd([Member(script.url, NO_TLS, None, 20.0)])
        assert not isinstance(engine.state("web"), Unavailable)
        assert sent.wait(20)
        assert "does not answer as etcd" in reason(engine.state("web"))


def test_an_answer_that_ends_with_its_connection() -> None:
    """An answer without a length that is cut off at the deadline is none, though it would be a whole one."""

    def stay(handler: BaseHTTPRequestHandler, _: Request) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(json.dumps({"header": HEADER, "succeeded": True}).encode())
        handler.wfile.flush()
        script.over.wait()
        handler.close_connection = True

    script = Script(stay)
    assert "no answer within 0.3 s" in reason(ask(script, seconds=0.3))


def test_answers_that_are_too_large() -> None:
    """An answer of any size, compressed ones included, takes a bounded amount of memory."""
    assert "longer than" in reason(ask(answers(200, b" " * (ANSWER_MAX + 1))))
    small = gzip.compress(b" " * 1_000_000)
    assert "answer" in reason(ask(answers(200, small, **{"Content-Encoding": "gzip"})))


def test_nothing_of_a_login_is_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server that echoes the request in its error, or fails in any way, puts no password into a text."""
    caplog.set_level("DEBUG")
    (tmp_path / "password").write_text(PASSWORD)
    login = Login("agent", tmp_path / "password")

    def echo(handler: BaseHTTPRequestHandler, request: Request) -> None:
        reply(handler, 500, json.dumps({"message": request.body.decode()}).encode())

    def close(handler: BaseHTTPRequestHandler, _: Request) -> None:
        handler.close_connection = True

    def token(handler: BaseHTTPRequestHandler, request: Request) -> None:
        if request.path.endswith("authenticate"):
            reply(handler, 200, json.dumps({"token": TOKEN}).encode())
        else:
            assert request.headers["Authorization"] == TOKEN
            reply(handler, 500, json.dumps({"message": f"bad {request.headers}"}).encode())

    for answer in (echo, close, token):
        script = Script(answer)
        found = ask(script, login)
        assert script.requests
        assert isinstance(found, Unavailable)
        assert PASSWORD not in f"{found!r}{caplog.text}"
        assert TOKEN not in f"{found!r}{caplog.text}"
    assert PASSWORD not in f"{Member('http://127.0.0.1:1', NO_TLS, login, 1.0)!r}"


@pytest.mark.parametrize("token", ["", "a\r\nX: y", "x" * 5000, 3, None])
def test_a_token_that_is_none(tmp_path: Path, token: object) -> None:
    """What cannot be a header is no token."""
    (tmp_path / "password").write_text(PASSWORD)
    body = json.dumps({"token": token}).encode()
    assert "no token" in reason(ask(answers(200, body), Login("agent", tmp_path / "password")))


def test_the_environment_has_no_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Proxies, a .netrc and certificates that the environment names are not used."""
    (tmp_path / ".netrc").write_text("default login user password secret\n")
    with serve(answers(200, b"{}")) as proxy:
        for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        script = answers(200, b"{}")
        assert isinstance(ask(script), Unavailable)
        assert proxy.requests == []
    assert [each.path for each in script.requests] == ["/v3/kv/txn"]
    assert "Authorization" not in script.requests[0].headers


def test_the_first_member_that_answers_is_kept() -> None:
    """Each member that fails is named. The one that has answered is asked first the next time."""
    empty = {"header": HEADER, "succeeded": True, "responses": [{"response_range": {}}] * 3}
    bad, good = answers(500, b"{}"), answers(200, json.dumps(empty).encode())
    with serve(bad), serve(good):
        engine = Etcd([Member(each.url, NO_TLS, None, 20.0) for each in (bad, good)])
        for _ in range(3):
            assert not isinstance(engine.state("web"), Unavailable)
        assert len(bad.requests) == 1
    found = engine.state("web")
    assert bad.url in reason(found)
    assert good.url in reason(found)
