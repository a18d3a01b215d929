# SPDX-License-Identifier: MIT
"""The audit in a real journal: who is believed, and that its chain holds."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from credferry.agent.audit.events import Event
from credferry.agent.audit.history import UnitEvent
from credferry.agent.audit.records import chain_hash
from credferry.agent.cli.documents import DOCUMENTS
from credferry.agent.errors import ExitStatus
from credferry.agent.sealing.keys import CredentialKey
from tests.support.cache import cache_directory
from tests.support.deployment import LIGHT_KERNEL, Deployment, VmFiles, broken_by_bad
from tests.support.host import CommandError, Host, patience
from tests.support.installation import CHECKOUT, install
from tests.support.producer import SopsNix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ONE_VM = '[vms.web.credentials]\nAPI_KEY = { secret = "api-key" }\n'


@pytest.fixture
def deployment(host: Host, sops: SopsNix) -> Iterator[Deployment]:
    """One light VM, and a secret for it."""
    made = Deployment(host)
    made.add_vm("web")
    made.configure(ONE_VM)
    sops.publish({"api-key": b"value"})
    yield made
    made.close()


CHAINED = {"MESSAGE", "MESSAGE_ID", "PRIORITY", "OBJECT_SYSTEMD_UNIT"}


def events(deployment: Deployment) -> list[tuple[str, str]]:
    """Kinds and messages of what the audit tells, oldest first."""
    records = json.loads(deployment.credferry("audit", "--records", "--json"))
    return [(record["event"], record["message"]) for record in records]


# Who has sent a record, journald looks up when it reads that: the sender must be there still.
_SEND = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
    sender.sendto(sys.argv[1].encode(), "/run/systemd/journal/socket")
    print("sent", flush=True)
    sys.stdin.read()
"""


def forge(
    host: Host,
    event: Event,
    user: str | None,
    unit: str | None = None,
    *,
    message: str = "",
    run: str = "forged",
) -> None:
    """Send a record with one of our ids, as a user, from within a unit of its own or of a given name."""
    message = message or f"forged by {user} in {unit}"
    fields = f"MESSAGE_ID={event.value}\nMESSAGE={message}\nCREDFERRY_VM=web\nCREDFERRY_RUN={run}\n"
    command = ["/usr/bin/python3", "-IS", "-c", _SEND, fields]
    if unit is not None:
        within = ["systemd-run", "--quiet", "--pipe", "--wait", f"--unit={unit}"]
        command = [*within, *([f"--uid={user}"] if user else []), *command]
    sender = host.spawn(*command, user=None if unit is not None else user)
    assert sender.stdout
    assert sender.stdout.readline() == "sent\n"
    host.run("journalctl", "--sync")
    sender.communicate("")
    assert sender.returncode == 0


def test_only_who_may_say_so_is_believed(deployment: Deployment, host: Host) -> None:
    """Anybody can send our message ids; the audit goes by what journald itself says of the sender."""
    forge(host, Event.SEALED, "nobody")
    forge(host, Event.LAUNCHED, "nobody", "somebodys.service")
    forge(host, Event.LAUNCHED, None)
    assert not [each for each in events(deployment) if "forged" in each[1]]


def test_a_launcher_is_believed_by_its_unit(deployment: Deployment, host: Host) -> None:
    """What the VM's own unit says of its launch is in the audit, whatever name the unit has."""
    deployment.configure('[vms.web]\nunit = "renamed.service"\n' + ONE_VM)
    deployment.credferry("agent", "--once")
    forge(host, Event.LAUNCHED, "nobody", "renamed.service")
    forge(host, Event.LAUNCHED, "nobody", "another.service")
    launched = [each for each in events(deployment) if "forged" in each[1]]
    assert launched == [("launched", "forged by nobody in renamed.service")]


def test_what_a_vm_says_acts_on_no_reader(deployment: Deployment, host: Host) -> None:
    """A VM's own records are believed, and yet reach no terminal, spreadsheet or browser as they are."""
    deployment.configure('[vms.web]\nunit = "speaking.service"\n' + ONE_VM)
    deployment.credferry("agent", "--once")
    escape, override = "\x1b]0;owned\x07", "\u202e"
    evil = f"=HYPERLINK(1){escape}{override}<script>"
    forge(host, Event.LAUNCHED, "nobody", "speaking.service", message=evil, run="@SUM(1)")
    forms = {
        options: deployment.credferry("audit", *options)
        for options in (
            *(("--csv",), ("--records", "--csv"), ("--periods", "--csv")),
            *(("--json",), ("--records", "--json"), ("--periods", "--json")),
            *((), ("--records",), ("--periods",)),
        )
    }
    deployment.credferry("audit", "--html", "/root/audit.html")
    forms["--html",] = host.path("/root/audit.html").read_text()
    for options, text in forms.items():
        assert all(line.isprintable() for line in text.split("\n")), options
        assert "<script>" not in text or "--html" not in options
        if "--csv" in options:
            cells = [each for row in csv.reader(io.StringIO(text)) for each in row]
            assert not [each for each in cells if each.startswith(("=", "+", "-", "@"))], options
    assert "'=HYPERLINK(1)\\x1b]0;owned" in forms["--records", "--csv"]
    records = json.loads(forms["--records", "--json"])
    assert evil in {record["message"] for record in records}, "JSON holds it to the letter"


def test_a_launch_refused_is_told(deployment: Deployment, host: Host) -> None:
    """A VM that the launcher refuses to start fails at once, for good, with the reason in the journal."""
    deployment.credferry("agent", "--once")
    deployment.add_vm("web", VmFiles(("--kernel", LIGHT_KERNEL, "-v")))
    host.run("systemctl", "start", "microvm@web.service")
    host.wait(lambda: deployment.unit("web")["ActiveState"] == "failed", 10, "refusal")
    assert deployment.unit("web")["NRestarts"] == "0"
    refused = [message for event, message in events(deployment) if event == "launch refused"]
    assert refused
    assert "-v" in refused[-1]


TABLES = """
[source]
quiet_seconds = 0.1
resync_seconds = 0.5
[rollout]
attempts = 1
stamp_seconds = 30.0
[vms.db.credentials]
KEY = { secret = "key" }
"""
REMOTE = "/usr/lib/systemd/systemd-journal-remote"
Entries = list[str]


@pytest.fixture(scope="module")
def past() -> Iterator[Deployment]:
    """A host of its own with a VM's past: a rotation, one back, one that failed, and a start by hand."""
    with Host(cache_directory()) as host:
        install(host)
        made, sops = Deployment(host), SopsNix(host)
        made.add_vm("db", broken_by_bad("KEY"))
        # What a bad value breaks has failed at once, and is not waited for.
        no_loop = "[Service]\nRestartPreventExitStatus=1\n"
        host.write("/etc/systemd/system/microvm@db.service.d/60-once.conf", no_loop)
        host.run("systemctl", "daemon-reload")
        made.configure(TABLES)
        sops.publish({"key": b"good"})
        made.credferry("agent", "--once")
        made.start_vm("db")
        made.start_agent()
        for value in (b"second", b"good"):
            sops.publish({"key": value})
            made.wait_in_step("db")
        sops.publish({"key": b"bad value"})
        host.wait(lambda: "rolled back to" in " ".join(made.status()["db"]["reasons"]), 30, "rollback")
        sops.publish({"key": b"good"})
        made.wait_in_step("db")
        host.run("systemctl", "stop", "credferry.service", "microvm@db.service")
        yield made


def stories(past: Deployment, *options: str) -> list[dict[str, Any]]:
    """The rotations, as JSON has them."""
    told: list[dict[str, Any]] = json.loads(past.credferry("audit", "--json", *options))
    return told


def test_the_chain_is_as_documented(past: Deployment) -> None:
    """By journalctl's word alone: each record's hash is right, and it names the hash of the one before."""
    host = past.host
    content = host.path("/var/lib/systemd/credential.secret").read_bytes()
    key = CredentialKey.from_file_content(content).derive("audit")
    entries = host.journal(SYSLOG_IDENTIFIER="credferry", _UID="0")
    chain = {int(entry["CREDFERRY_SEQUENCE"]): entry for entry in entries if "CREDFERRY_HASH" in entry}
    for entry in chain.values():
        fields = [
            f"{name}={value}"
            for name, values in entry.items()
            if name in CHAINED or name.startswith("CREDFERRY_")
            for value in values.split("\n")
            if name != "CREDFERRY_HASH"
        ]
        assert chain_hash(key, fields) == entry["CREDFERRY_HASH"], entry
    assert list(chain) == list(range(1, len(chain) + 1))
    for number in list(chain)[1:]:
        assert chain[number]["CREDFERRY_PREVIOUS"] == chain[number - 1]["CREDFERRY_HASH"]


def test_each_rotation_is_one_story(past: Deployment) -> None:
    """Steps come in order, a failed rotation ends in its rollback, and old values are known again."""
    first, second, back, bad = stories(past)[:4]
    assert [step["event"] for step in first["steps"]] == ["published", "sealed", "launched"]
    assert (first["outcome"], second["outcome"]) == ("started", "restarted")
    steps = [step["event"] for step in second["steps"]]
    assert steps[:3] == ["published", "sealed", "restart asked"]
    assert set(steps[3:]) == {"launched", "restarted"}
    began, ended = (datetime.fromisoformat(second["steps"][place]["time"]) for place in (0, -1))
    assert second["seconds"] == pytest.approx((ended - began).total_seconds(), abs=0.002)
    assert second["seconds"] > 0
    assert second["changed"][0]["reverted_to"] is None
    reverted = back["changed"][0]
    assert reverted["fingerprint"] == first["changed"][0]["fingerprint"]
    assert reverted["reverted_to"]["generation"] == 1
    assert bad["outcome"] == "rolled back"
    # A launcher reports the start to the agent before it writes its record. So either may come first.
    steps = [step["event"] for step in bad["steps"]]
    assert steps[-3] == "restart failed"
    assert set(steps[-2:]) == {"launched", "rolled back"}
    assert "launched" not in [step["event"] for step in back["later"]]
    text = past.credferry("audit")
    assert "KEY" in text
    assert "back to the value of generation 1, of 20" in text
    assert len({each["run"] for each in stories(past)}) == len(stories(past))


def test_who_ran_what_and_when(past: Deployment) -> None:
    """Each start of a VM, with what it was given, until PID 1 says that its unit ended."""
    rows = json.loads(past.credferry("audit", "--periods", "--json"))
    told = {each["generation"]: each["changed"][0]["fingerprint"] for each in stories(past)}
    assert [row["generation"] for row in rows[:4]] == [1, 2, 3, 3]
    assert all(row["fingerprint"] == told[row["generation"]] for row in rows)
    assert 4 not in {row["generation"] for row in rows}, "what failed never ran"
    ends = [row["to"] for row in rows]
    assert ends == sorted(ends)
    assert all(row["from"] < row["to"] for row in rows)
    for row, following in pairwise(rows):
        assert row["to"] <= following["from"]
    assert rows[-1]["ended_by"] == "stopped"
    stopped = past.host.journal(MESSAGE_ID="7ad2d189f7e94e70a38c781354912448", UNIT="microvm@db.service")
    assert rows[-1]["to"].startswith(_iso(stopped[-1]["_SOURCE_REALTIME_TIMESTAMP"]))


def _iso(microseconds: str) -> str:
    return datetime.fromtimestamp(int(microseconds) / 1e6, UTC).isoformat()[:23]


def test_a_host_that_went_down(past: Deployment) -> None:
    """In an older boot of a forensic copy, a VM ran until the last that this boot's journal holds."""
    ours = exported(past.host)
    starts = [place for place, entry in enumerate(ours) if Event.LAUNCHED.value in entry]
    older = re.search("^_BOOT_ID=(.*)$", ours[0], re.MULTILINE)
    assert older
    later = [
        entry.replace(older[1], "0" * 31 + "1")
        for entry in ours[starts[1] + 1 :]
        if "\n_PID=1\n" not in f"\n{entry}\n"
    ]
    directory = forge_journal(past.host, "boots", [*ours[: starts[1] + 1], *later])
    rows = json.loads(past.credferry("audit", "--periods", "--json", "--directory", directory))
    assert [row["ended_by"] for row in rows[:2]] == ["stopped", "the host went down"]
    assert rows[1]["to"] < rows[2]["from"]


def test_moments_as_journalctl_takes_them(past: Deployment) -> None:
    """--since and --until are read by systemd itself; what lies outside is left out, and still known."""
    everything = stories(past)
    since = everything[2]["began"]
    at = datetime.fromisoformat(since).timestamp() - 0.01
    later = stories(past, "--since", f"@{at:.3f}")
    assert later == everything[2:]
    assert stories(past, "--until", f"@{at:.3f}") == everything[:2]
    assert stories(past, "--since", "-1h", "--until", "tomorrow") == everything
    with pytest.raises(CommandError, match="has a credential 'OTHER'"):
        stories(past, "--credential", "OTHER")
    assert stories(past, "--credential", "KEY", "--vm", "db") == everything


@pytest.mark.parametrize("what", [(), ("--records",), ("--periods",)])
def test_forms_for_programs(past: Deployment, what: tuple[str, ...]) -> None:
    """JSON is as its schema says; CSV has a line of names, and as many rows as JSON has objects."""
    rows = list(csv.DictReader(io.StringIO(past.credferry("audit", *what, "--csv"))))
    documents = json.loads(past.credferry("audit", *what, "--json"))
    assert len(rows) == len(documents) > 0
    document = DOCUMENTS[" ".join(("audit", *what))]
    kind: Any = list[document]  # type: ignore[valid-type]  # mypy takes no type from a table
    msgspec.convert(documents, kind)
    assert all(None not in row and None not in row.values() for row in rows)
    assert {row["vm"] for row in rows} == {document["vm"] for document in documents}


def test_following(past: Deployment) -> None:
    """--follow shows the last ten records, then each as it comes, and Ctrl-C ends it without a word."""
    past.start_agent()
    process = past.host.spawn("credferry", "audit", "--follow", "--json")
    assert process.stdout
    assert process.stderr
    shown = [json.loads(process.stdout.readline()) for _ in range(10)]
    assert shown == json.loads(past.credferry("audit", "--records", "--json"))[-10:]
    past.credferry("hold", "db")
    assert [json.loads(process.stdout.readline())["event"] for _ in range(2)] == ["ordered", "held"]
    past.credferry("release", "db", check=False)
    assert [json.loads(process.stdout.readline())["event"] for _ in range(2)] == ["ordered", "released"]
    process.send_signal(signal.SIGINT)
    assert process.wait(30 * patience()) == 0
    assert process.stderr.read() == ""
    past.host.run("systemctl", "stop", "credferry.service")


def verify(past: Deployment, *options: str) -> tuple[int, list[str]]:
    """Status and lines of ``credferry audit --verify``."""
    done = past.host.run("credferry", "audit", "--verify", *options, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def exported(host: Host) -> Entries:
    """All that the audit reads from, in the journal's own export format, one string an entry."""
    ids = [event.value for event in (*Event, *UnitEvent)]
    host.run("journalctl", "--sync")
    text = host.run("journalctl", "-o", "export", *(f"MESSAGE_ID={each}" for each in ids)).stdout
    entries = text.strip("\n").split("\n\n")
    assert all("=" in line for entry in entries for line in entry.split("\n")), "a field in binary form"
    return entries


def forge_journal(host: Host, name: str, entries: Entries) -> str:
    """A journal of these entries, trusted fields and all; the directory where it is."""
    directory = f"/tmp/forged/{name}"
    host.write(f"{directory}.export", "".join(f"{entry}\n\n" for entry in entries))
    host.run("mkdir", "-p", directory)
    host.run(REMOTE, f"--output={directory}/system.journal", f"{directory}.export")
    return directory


def sequence(entry: str) -> int:
    """A record's number in the chain; 0 for what is not in it."""
    match = re.search("^CREDFERRY_SEQUENCE=([0-9]+)$", entry, re.MULTILINE)
    return int(match[1]) if match else 0


def place(entries: Entries, number: int) -> int:
    """Where the record of a number is; a negative one counts from the last."""
    numbers = list(map(sequence, entries))
    return numbers.index(number if number > 0 else max(numbers) + 1 + number)


def removed(entries: Entries) -> Entries:
    """Without one record."""
    return [entry for entry in entries if sequence(entry) != 5]


def edited(entries: Entries) -> Entries:
    """One record with another message, and all else as it was."""
    at = place(entries, 6)
    changed = re.sub("^MESSAGE=.*$", "MESSAGE=db: nothing happened", entries[at], flags=re.MULTILINE)
    assert changed != entries[at]
    return [*entries[:at], changed, *entries[at + 1 :]]


def reordered(entries: Entries) -> Entries:
    """Two records in each other's place, also by the journal's own moments."""
    one, two = place(entries, 7), place(entries, 8)
    changed = list(entries)
    changed[one], changed[two] = _as_at(entries[two], entries[one]), _as_at(entries[one], entries[two])
    return changed


def _as_at(entry: str, place: str) -> str:
    own, others = entry.split("\n"), place.split("\n")
    return "\n".join(
        [line for line in others if line.startswith("__")]
        + [line for line in own if not line.startswith("__")]
    )


def truncated(entries: Entries) -> Entries:
    """Without the last two records, and whatever came after."""
    return entries[: place(entries, -2)]


def one_short(entries: Entries) -> Entries:
    """Without the very last record."""
    return entries[: place(entries, -1)]


def added(entries: Entries) -> Entries:
    """With a record that root made up."""
    at = place(entries, 7)
    made_up = re.sub("^CREDFERRY_(HASH|SEQUENCE|PREVIOUS)=.*\n?", "", entries[at], flags=re.MULTILINE)
    return [*entries[:at], made_up.strip("\n"), *entries[at:]]


FORGERIES: dict[Callable[[Entries], Entries], str] = {
    removed: "number 5 is missing",
    edited: "number 6 is not authentic",
    reordered: "is out of order",
    truncated: "missing at the end: numbers",
    one_short: "missing at the end: number",
    added: "has no number",
}


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: str(forgery.__name__))
def test_a_forged_journal(past: Deployment, forgery: Callable[[Entries], Entries]) -> None:
    """Where all is as journald wrote it but for one deed, that deed is the finding."""
    directory = forge_journal(past.host, forgery.__name__, forgery(exported(past.host)))
    status, lines = verify(past, "--directory", directory)
    assert status == 1
    assert len(lines) == 1, lines
    assert FORGERIES[forgery] in lines[0]


def test_an_honest_journal(past: Deployment) -> None:
    """Nothing is found in the host's own journal, in a copy of it, and where its beginning was vacuumed."""
    assert verify(past)[0] == 0
    ours = exported(past.host)
    assert verify(past, "--directory", forge_journal(past.host, "copy", ours))[0] == 0
    status, lines = verify(past, "--directory", forge_journal(past.host, "vacuumed", ours[place(ours, 4) :]))
    assert status == 0
    assert "begins at number 4" in lines[0]


def test_killed_between_keeping_and_sending(past: Deployment) -> None:
    """The record that a crash leaves unsent is told of, no finding, and sent when the agent starts."""
    host = past.host
    inject = ("-e", "trace=sendmsg", "-e", "inject=sendmsg:signal=KILL:when=1")
    SopsNix(host).publish({"key": b"killed"})
    # Without -f it is the main thread alone: that of the bus sends, too.
    seal = ("strace", "-o", "/tmp/killed.trace", *inject, "credferry", "agent", "--once")
    assert host.run(*seal, check=False).returncode != 0
    assert "journal/socket" in host.path("/tmp/killed.trace").read_text()
    status, lines = verify(past)
    assert status == 0
    assert [line for line in lines if "was stored but not sent" in line]
    past.start_agent()
    status, lines = verify(past)
    assert (status, len(lines)) == (0, 1), lines
    past.kill_agent()
    past.start_agent()
    host.run("systemctl", "stop", "credferry.service")
    status, lines = verify(past)
    assert (status, len(lines)) == (0, 1), lines


def test_a_tail_cut_off_where_it_is_kept(past: Deployment) -> None:
    """Removing the journal's own files shows as well, and so does a head that was taken away."""
    past.host.write("/etc/credferry/elsewhere.toml", 'state_directory = "/var/lib/nowhere"\n' + TABLES)
    status, lines = verify(past, "--config", "/etc/credferry/elsewhere.toml")
    assert status == 1
    assert "no record of the last number" in lines[0]
    empty = forge_journal(
        past.host, "empty", [entry for entry in exported(past.host) if "CREDFERRY" not in entry]
    )
    assert "missing at the end: numbers 1 to" in verify(past, "--directory", empty)[1][0]


def test_a_copy_elsewhere(past: Deployment) -> None:
    """A forensic copy is verified with copies of the host's files, and refused without its key."""
    host = past.host
    directory = forge_journal(host, "evidence", exported(host))
    host.run("mkdir", "-p", "/evidence/credferry")
    for source, target in (
        ("/var/lib/credferry/audit.json", "credferry/audit.json"),
        ("/var/lib/credferry/audit.sent", "credferry/audit.sent"),
        ("/var/lib/systemd/credential.secret", "credential.secret"),
        ("/etc/machine-id", "machine-id"),
    ):
        host.run("cp", "--preserve=mode", source, f"/evidence/{target}")
    documented = re.search("```toml\n(.*?)```", (CHECKOUT / "docs/audit.md").read_text(), re.DOTALL)
    assert documented
    host.write("/evidence/config.toml", documented[1])
    copy = ("--config", "/evidence/config.toml", "--directory", directory)
    assert verify(past, *copy)[0] == 0
    host.run("rm", "/evidence/credential.secret")
    refused = host.run("credferry", "audit", "--verify", *copy, check=False)
    assert refused.returncode == ExitStatus.KEY
    assert "/evidence/credential.secret" in refused.stderr
    assert not refused.stdout


@pytest.mark.parametrize(
    "options",
    [
        ("--verify", "--vm", "db"),
        ("--verify", "--periods"),
        ("--html", "/tmp/refused.html", "--json"),
        ("--json", "--csv"),
        ("--until", "rubbish"),
    ],
)
def test_what_does_not_go_together(past: Deployment, options: tuple[str, ...]) -> None:
    """Options that would leave out part of what was asked for are refused, and nothing is written."""
    refused = past.host.run("credferry", "audit", *options, check=False)
    assert refused.returncode == ExitStatus.USAGE
    assert options[0] in refused.stderr
    assert not refused.stdout
    assert not past.host.path("/tmp/refused.html").exists()
