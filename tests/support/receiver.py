# SPDX-License-Identifier: MIT
"""The guest's receiver as a process of its own, and a small client that speaks the host's side by hand.

The shells, coreutils, flock and systemd-creds are real; systemd-creds has a key made for this machine.
Two programs are faked, because a test must not change this machine: systemctl (`_SYSTEMCTL` keeps units as
directories), and mount, which does nothing. `tests/guest/test_receiver.py` has the real ones.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.support.host import patience
from tests.support.installation import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCRIPT: Final = CHECKOUT / "contrib/guest/credferry-receive"
SHELLS: Final = ("/usr/bin/dash", "/usr/bin/bash", "/usr/bin/busybox ash")
MANIFEST: Final = "credferry.manifest"
RECEIPT: Final = "0123456789abcdef" * 2
_SECONDS: Final = 120.0

_SYSTEMCTL: Final = """\
#!/bin/sh
PATH=$REAL_PATH
verb=$1
shift
while :; do case $1 in --) shift; break ;; -p) shift 2 ;; -*) shift ;; *) break ;; esac; done
echo "$verb $*" >>"$FAKE/log"
status=0
for unit in "$@"; do
    [ "$unit" != '*.service' ] || for exited in "$FAKE"/units/*/exited; do
        [ ! -e "$exited" ] || { exited=${exited%/exited} && set -- "$@" "${exited##*/}"; }
    done
done
for unit in "$@"; do
    cd "$FAKE/units/$unit" 2>/dev/null || { status=4; continue; }
    case $verb in
    cat) cat unit unit.d/* ;;
    show)
        echo "Id=$unit"; echo "InvocationID=$(cat id)"; echo "ActiveState=$(cat state)"; cat properties
        echo "FragmentPath=$PWD/unit"; echo "DropInPaths=$(echo "$PWD"/unit.d/*)"
        echo
        ;;
    restart | start | reload) . ./"$verb" || status=1 ;;
    esac
done
exit $status
"""
_MOUNT: Final = """\
#!/bin/sh
case $2 in remount,*) [ ! -e "$FAKE/unwritable" ] ;; esac
"""
_PROGRAMS: Final = ("base64", "cp", "mkdir", "mount", "mv", "rm", "systemctl", "systemd-creds")
"""What the receiver changes something with."""
_STEP: Final = """\
#!/bin/sh
next=$(PATH=${PATH#*:} && command -v "${0##*/}")
case $1 in cat | show) exec "$next" "$@" ;; esac
read -r step <"$FAKE/step"
read -r last <"$FAKE/last-step"
echo $((step + 1)) >"$FAKE/step"
if [ "$step" -eq "$last" ]; then
    read -r stat </proc/self/stat
    set -- ${stat##*) }
    session=$4
    for file in /proc/[0-9]*/stat; do
        { read -r stat <"$file"; } 2>/dev/null || continue
        set -- "${stat%% *}" ${stat##*) }
        [ "$5" != "$session" ] || [ "$1" = $$ ] || kill -9 "$1"
    done 2>/dev/null
    kill -9 $$
fi
exec "$next" "$@"
"""
"""Stands before each of these, and kills all of the receiver's session at the last step."""
_SPIED: Final = (
    *_PROGRAMS,
    *("cat", "flock", "head", "sha256sum", "sleep", "timeout"),
)
"""All programs that the receiver starts: while it is recorded, it finds no others."""
_SPY: Final = """\
#!/bin/sh
{ echo "${0##*/} $*" && /bin/cat /proc/$$/environ && echo; } >>"$FAKE/seen"
own=$PATH
PATH=${0%/*}/../bin:$REAL_PATH
program=$(command -v "${0##*/}")
PATH=$own
exec "$program" "$@"
"""
_RESTART: Final = "echo $(($(cat id) + 1)) >id; echo active >state\n"


@dataclass(frozen=True, slots=True)
class Block:
    """A credential as it is sent: ``content`` is what its OEM string would hold."""

    kind: str
    content: bytes
    digest: str

    @classmethod
    def plain(cls, value: bytes) -> Block:
        """A value that is not sealed."""
        return cls("plain", base64.b64encode(value), hashlib.sha256(value).hexdigest())

    @classmethod
    def sealed(cls, value: bytes, blob: bytes) -> Block:
        """A value, and what it was sealed as."""
        return cls("sealed", b"".join(blob.split()), hashlib.sha256(value).hexdigest())


def manifest(
    generation: int,
    credentials: Mapping[str, Block],
    *,
    vm: str = "web",
    key: str = "none",
    receipt: str = RECEIPT,
) -> bytes:
    """A manifest's text."""
    head = f"credferry-push 1\nvm {vm}\ngeneration {generation}\nkey {key}\nreceipt {receipt}\n"
    lines = (f"credential {name} {each.kind} {each.digest}\n" for name, each in sorted(credentials.items()))
    return (head + "".join(lines)).encode()


def frame(line: str, content: bytes) -> bytes:
    """A line that announces a block, and the block."""
    return f"{line} {len(content)}\n".encode() + content


def push(block: Block, credentials: Mapping[str, Block]) -> bytes:
    """All that the host says: the manifest, each credential, and the commit."""
    parts = [frame(f"generation {block.kind}", block.content)]
    parts += [frame(f"credential {name} {each.kind}", each.content) for name, each in credentials.items()]
    return b"".join([*parts, b"commit\n"])


def plain_push(generation: int, credentials: Mapping[str, Block], **fields: str) -> bytes:
    """A whole push to a guest without a key."""
    return push(Block.plain(manifest(generation, credentials, **fields)), credentials)


def answer(connection: socket.socket, sent: bytes) -> list[str]:
    """Send, and read to the guest's last word as the host does: whoever answers first is heard first."""
    connection.settimeout(_SECONDS * patience())
    lines: list[str] = []
    with connection, connection.makefile("r", encoding="ascii") as reader:
        # A reset counts as the end, too: systemd refuses a connection that is one too many in this way.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        with suppress(ConnectionResetError):
            for line in reader:
                lines.append(line.rstrip("\n"))
                if line.startswith(("done ", "failed ")):
                    break
    return lines


@dataclass(slots=True)
class Guest:
    """A guest's files below a directory, and its receiver run by one shell."""

    root: Path
    shell: str
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lay the files out."""
        program = self.root / "bin"
        for directory in (self.system, program, self.fake / "units", self.root / "etc/credferry-receive.d"):
            directory.mkdir(parents=True)
        for name, text in (("systemctl", _SYSTEMCTL), ("mount", _MOUNT)):
            self._program(program / name, text)
        self._program(program / "receive", SCRIPT.read_text().replace("#!/bin/sh", f"#!{self.shell}", 1))
        self.environment = {
            "PATH": f"{program}:/usr/bin:/bin",
            "REAL_PATH": "/usr/bin:/bin",
            "FAKE": str(self.fake),
            "SYSTEM": str(self.system),
            "REMOTE_ADDR": "vsock:2",
            "CREDFERRY_RECEIVE_ROOT": str(self.root),
            "SYSTEMD_CREDENTIAL_SECRET": str(self.root / "credential.secret"),
        }

    @property
    def system(self) -> Path:
        """Where PID 1 keeps the system's credentials."""
        return self.root / "run/credentials/@system"

    @property
    def fake(self) -> Path:
        """The faked systemd's files."""
        return self.root / "fake"

    def boot(self, generation: int, credentials: Mapping[str, bytes], **fields: str) -> None:
        """Lay out what came with plain OEM strings."""
        blocks = {name: Block.plain(value) for name, value in credentials.items()}
        for name, value in credentials.items():
            (self.system / name).write_bytes(value)
        (self.system / MANIFEST).write_bytes(manifest(generation, blocks, **fields))

    def unit(self, name: str, text: str, *, restart: str = "", properties: str = "Type=simple\n") -> None:
        """A running unit; ``restart`` are lines of shell that its restart runs at the end."""
        (self.root / "run/credentials" / name).mkdir()
        place = self.fake / "units" / name
        place.mkdir()
        files = {"unit": text, "id": "1\n", "state": "active\n", "properties": properties}
        verbs = {"restart": _RESTART + restart, "start": ":\n", "reload": ":\n"}
        for file, content in {**files, **verbs}.items():
            (place / file).write_text(content)

    def exit_unit(self, name: str) -> None:
        """The program of a unit ends, and the unit stays active without credentials (RemainAfterExit=)."""
        (self.fake / "units" / name / "exited").touch()
        (self.root / "run/credentials" / name).rmdir()

    def kill_at(self, step: int) -> None:
        """Kill the receiver before its step of this number, the first is 1; with 0, kill none."""
        steps = self.root / "steps"
        if not steps.exists():
            steps.mkdir()
            for name in _PROGRAMS:
                self._program(steps / name, _STEP)
            self.environment["PATH"] = f"{steps}:{self.environment['PATH']}"
        (self.fake / "step").write_text("1\n")
        (self.fake / "last-step").write_text(f"{step}\n")

    def record(self) -> None:
        """From now on, note in `fake` / ``seen`` the arguments and environment of each program that runs."""
        spies = self.root / "spies"
        spies.mkdir()
        for name in _SPIED:
            self._program(spies / name, _SPY)
        self.environment["PATH"] = str(spies)

    def started(self) -> list[str]:
        """The programs that the receiver has started since the last call, while it was recorded."""
        seen = self.fake / "seen"
        lines = seen.read_bytes().split(b"\n")
        seen.write_bytes(b"")
        words = (line.split(b" ")[0].decode("ascii", "replace") for line in lines)
        return [word for word in words if word in _SPIED]

    def told(self, verb: str) -> list[str]:
        """What the faked systemd was asked to do of this kind."""
        log = self.fake / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.removeprefix(f"{verb} ") for line in lines if line.startswith(f"{verb} ")]

    def start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start the receiver on a connection, as systemd does."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [str(self.root / "bin/receive")],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env=self.environment,
                cwd="/",
                start_new_session=True,
            )
        return process, ours

    def receive(self, sent: bytes) -> list[str]:
        """One connection: what the receiver says, without its hello where it says one."""
        process, connection = self.start()
        lines = answer(connection, sent)
        process.wait(_SECONDS * patience())
        return [line for line in lines if not line.startswith("credferry ")]

    def break_off(self, sent: bytes) -> None:
        """A connection that the host ends after it has sent this; returns once the receiver has ended."""
        process, connection = self.start()
        with connection, suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        process.wait(_SECONDS * patience())

    def values(self) -> dict[str, bytes]:
        """What lies in @system, without the manifest."""
        return {path.name: path.read_bytes() for path in self.system.iterdir() if path.name != MANIFEST}

    def clean_up(self) -> None:
        """Do what the service's ExecStopPost= does, which also runs after a kill."""
        for path in (self.root / "run/credferry-receive").glob("work/*"):
            path.unlink()

    def left(self) -> list[str]:
        """What the receiver has left of its own, but for its note of the manifest in @system."""
        run = self.root / "run/credferry-receive"
        log = run / "log"
        begun = [line for line in log.read_text().splitlines()[1:] if line] if log.exists() else []
        files = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path != log]
        return sorted(files) + begun

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)
