# SPDX-License-Identifier: MIT
"""Slots of a fleet with a FleetLock server: the protocol, and every answer that is not yes."""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.fleet.fleetlock import FleetLock, identity
from credferry.agent.fleet.model import (
    Applied,
    Full,
    Granted,
    Halted,
    Holder,
    OfHost,
    Unavailable,
    Unreadable,
    Unsupported,
)
from credferry.agent.fleet.transport import Tls, session
from tests.support.certificates import Authority
from tests.support.etcd import NO_TLS
from tests.support.rude_http import Request, Script, reply, serve

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

ME = Holder("h1.example.org", "web", "1" * 32)
OTHER = Holder("h2.example.org", "web", "2" * 32)
TAKE, GIVE_BACK = "/v1/pre-reboot", "/v1/steady-state"


class Server:
    """A FleetLock server with one slot for each group: recursive, without a lease."""

    def __init__(self, status: int = 409) -> None:
        self.held: dict[str, str] = {}
        self.status = status
        self.script = Script(self.answer)

    def answer(self, handler: BaseHTTPRequestHandler, request: Request) -> None:
        """Grant a slot, take one back, or refuse as airlock and poseidon do."""
        client = json.loads(request.body)["client_params"]
        if request.headers.get("fleet-lock-protocol") != "true":
            reply(handler, 400, b'{"kind":"bad_request","value":"no header"}')
        elif request.path == TAKE and self.held.setdefault(client["group"], client["id"]) != client["id"]:
            reply(handler, self.status, b'{"kind":"failed_lock","value":"the slot is held"}')
        elif request.path == GIVE_BACK and self.held.get(client["group"]) == client["id"]:
            del self.held[client["group"]]
            reply(handler, 200)
        else:
            reply(handler, 200)


def engine(script: Script, seconds: float = 20.0, tls: Tls = NO_TLS) -> FleetLock:
    """An engine that asks this server."""
    return FleetLock(script.url, session(tls, seconds))


def test_the_protocol() -> None:
    """The two calls have the paths, the header and the body of the protocol."""
    with serve(Server().script) as script:
        asked = engine(script)
        assert asked.acquire("web", ME, "r") == Granted(None)
        assert asked.release("web", ME) == Applied()
    body = {"client_params": {"group": "web", "id": "h1.example.org.web"}}
    assert [each.path for each in script.requests] == [TAKE, GIVE_BACK]
    for each in script.requests:
        assert json.loads(each.body) == body
        assert each.headers["fleet-lock-protocol"] == "true"
        assert each.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("status", [409, 423, 500])
def test_a_slot_that_another_vm_holds(status: int) -> None:
    """Whatever status a server uses for "not now", the VM waits, and gets the slot once it is given back."""
    with serve(Server(status).script) as script:
        asked = engine(script)
        assert asked.acquire("web", ME, "r") == Granted(None)
        assert asked.acquire("web", ME, "r") == Granted(None), "recursive: a lost answer costs nothing"
        assert asked.acquire("web", OTHER, "r") == Full(said=f"status {status}, failed_lock")
        assert asked.acquire("db", OTHER, "r") == Granted(None)
        assert asked.release("web", ME) == Applied()
        assert asked.acquire("web", OTHER, "r") == Granted(None)


REFUSAL = b'{"kind":"no\\u001b[2J","value":"v"}'
BAD = {
    "HTML": (500, b"<html>oops</html>", "text/html"),
    "a proxy's error": (502, b"Bad gateway", "text/plain"),
    "nothing": (503, b"", "application/json"),
    "no kind": (409, b"{}", "application/json"),
    "another form": (409, b'["kind"]', "application/json"),
    "bytes": (409, b"\xff\xfe", "application/json"),
    "depth": (409, b"[" * 100_000, "application/json"),
    "201": (201, b"", "application/json"),
    "204": (204, b"", "application/json"),
    "202 in HTML": (202, b"<html>Log in</html>", "text/html"),
    "a wrong request": (400, REFUSAL, "application/json"),
    "no login": (401, REFUSAL, "application/json"),
    "forbidden": (403, REFUSAL, "application/json"),
    "another path": (404, b"404 page not found", "text/plain"),
}


@pytest.mark.parametrize("name", BAD)
def test_answers_that_are_no_answer(name: str) -> None:
    """Only 200 is yes. Another server's answer is said to be one, with its status and none of its text."""
    status, body, kind = BAD[name]
    with serve(Script(lambda handler, _: reply(handler, status, body, kind))) as script:
        for found in (engine(script).acquire("web", ME, "r"), engine(script).release("web", ME)):
            assert isinstance(found, Unavailable)
            assert script.url in found.reason
            assert f"status {status}" in found.reason
            assert found.reason.isprintable()
            assert "html" not in found.reason


def test_a_refused_release_is_no_release() -> None:
    """A server that does not take a slot back now is asked again later: the slot stays recorded as held."""
    refusal = b'{"kind":"failed_unlock","value":"later"}'
    with serve(Script(lambda handler, _: reply(handler, 500, refusal))) as script:
        found = engine(script).release("web", ME)
    assert isinstance(found, Unavailable)
    assert "failed_unlock" in found.reason


def test_what_a_server_says_is_bounded_and_printable() -> None:
    """A server's reason has neither commands for a terminal, nor any length."""
    refusal = json.dumps({"kind": "\x1b[2J\n" + "x" * 5000, "value": "secret"}).encode()
    with serve(Script(lambda handler, _: reply(handler, 423, refusal))) as script:
        found = engine(script).acquire("web", ME, "r")
    assert isinstance(found, Full)
    assert found.said.isprintable()
    assert len(found.said) < 200
    assert "secret" not in found.said


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    """A redirect is not yes, and nothing is sent to where it points."""
    with serve(Script(lambda handler, _: reply(handler, 200))) as other:
        script = Script(lambda handler, _: reply(handler, status, Location=other.url + TAKE))
        with serve(script):
            found = engine(script).acquire("web", ME, "r")
        assert isinstance(found, Unavailable)
        assert "redirect" in found.reason
        assert other.requests == []


def test_a_server_that_hangs_or_is_gone() -> None:
    """A server that says nothing costs a call its deadline. A connection that is refused is said at once."""
    script = Script(lambda *_: (script.over.wait(), None)[1])
    with serve(script):
        found = engine(script, 0.3).acquire("web", ME, "r")
        assert found == Unavailable(
            f"{script.url}: no answer within 0.3 s", "check the server and the network"
        )
    found = engine(script).acquire("web", ME, "r")
    assert isinstance(found, Unavailable)
    assert "connection failed" in found.reason


def test_a_lost_answer_to_acquire() -> None:
    """The server has granted the slot. Asking again finds that, and nobody else gets the slot."""
    server = Server()

    def lose(handler: BaseHTTPRequestHandler, request: Request) -> None:
        if len(server.script.requests) > 1:
            server.answer(handler, request)
            return
        server.held["web"] = identity(ME.host, ME.vm)
        handler.close_connection = True

    server.script.answer = lose
    with serve(server.script) as script:
        assert isinstance(engine(script).acquire("web", ME, "r"), Unavailable)
        assert isinstance(engine(script).acquire("web", OTHER, "r"), Full)
        assert engine(script).acquire("web", ME, "r") == Granted(None)


def test_tls_is_checked(tmp_path: Path) -> None:
    """A server with a certificate of another authority, or one that has ended, gets no request."""
    authority, other = Authority.make(tmp_path / "ca"), Authority.make(tmp_path / "other")
    tls = Tls(authority.ca)
    for issuer, days, is_good in ((authority, 1, True), (authority, -1, False), (other, 1, False)):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*issuer.issue("server", days=days))
        with serve(Server().script, context) as script:
            found = engine(script, tls=tls).acquire("web", ME, "r")
        assert isinstance(found, Granted) is is_good
        assert bool(script.requests) is is_good
        if isinstance(found, Unavailable):
            assert "its certificate is not valid" in found.reason


def test_what_the_protocol_does_not_have() -> None:
    """No call pretends to halt, resume, list or limit. The slot of one VM can be given back for it."""
    with serve(Server().script) as script:
        asked = engine(script)
        for found in (
            asked.halt("web", ME, "r", "x"),
            asked.resume("web"),
            asked.limit("web", 2),
            asked.groups(),
            asked.state("web"),
            asked.free("web", OfHost("h1")),
            asked.free("web", Unreadable()),
        ):
            assert not isinstance(found, Applied | Halted)
            assert isinstance(found, Unsupported)
        assert script.requests == []
        assert asked.acquire("web", OTHER, "r") == Granted(None)
        assert asked.free("web", OfHost(OTHER.host, OTHER.vm)) == Applied()
        assert asked.acquire("web", ME, "r") == Granted(None)


NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}", fullmatch=True)


@given(NAMES, NAMES, NAMES, NAMES)
def test_no_two_vms_have_one_identity(host: str, vm: str, other_host: str, other_vm: str) -> None:
    """Host and VM can be told from the identity, so no VM passes for another one."""
    is_same = (host, vm) == (other_host, other_vm)
    assert (identity(host, vm) == identity(other_host, other_vm)) is is_same
    assert identity("h.a", "b") != identity("h", "a.b")
