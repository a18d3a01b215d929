# SPDX-License-Identifier: MIT
"""A machine that can be switched on and off, with another TPM or none, and keeps its disk."""

from __future__ import annotations

import base64
import json
import math
import shutil
import socket
import subprocess
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, Self

from tests.support.boot import HostError
from tests.support.host import CommandError, Host, patience, wait_until

from . import files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .build import Built

_BOOT_SECONDS: Final = 400.0
"""Until it does what a test asks for: a boot takes a minute of processor time under emulation."""
_SLOWER: Final = 10.0
"""A command takes so many times as long as on a throwaway host."""


class Machine(Host):
    """One machine. It is off at first, and at the end of the ``with`` block."""

    def __init__(self, built: Built, directory: Path) -> None:
        super().__init__(directory)
        self._built, self._directory = built, directory
        self._on = ExitStack()
        self._control: socket.socket | None = None

    def __enter__(self) -> Self:
        # Most of the disk is holes.
        subprocess.run(["cp", "--sparse=always", self._built.disk, self._directory / "disk"], check=True)
        shutil.copyfile(self._built.variables, self._directory / "variables")
        return self

    def __exit__(self, *_: object) -> None:
        self._on.close()

    def switch_on(self, tpm: str = "") -> None:
        """Boot it with the TPM of this name, a new one if there is none yet; without a name, with none."""
        with ExitStack() as stack:
            options = self._plug(stack, tpm) if tpm else []
            control = self._directory / "control"
            console = stack.enter_context((self._directory / "qemu.log").open("wb"))
            qemu = stack.enter_context(
                subprocess.Popen([*self._command(control), *options], stdout=console, stderr=console)
            )
            stack.callback(qemu.kill)
            self._control = stack.enter_context(_connected(control, qemu))
            self._on = stack.pop_all()
        # Until then the firmware reads the port, too.
        self._answer(b"ready\n", _BOOT_SECONDS * patience())

    def switch_off(self) -> None:
        """Switch it off, with all written to its disk."""
        self.run("sync")
        self._on.close()

    def run(
        self,
        *arguments: str,
        check: bool = True,
        stdin: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as `Host.run` does; always as root."""
        assert user is None
        given = stdin.encode() if isinstance(stdin, str) else stdin or b""
        asked = {"argv": arguments, "stdin": base64.b64encode(given).decode(), "env": dict(env or {})}
        answer = self._ask(json.dumps(asked).encode() + b"\n", timeout * _SLOWER * patience())
        output, errors = (
            base64.b64decode(answer[name]).decode(errors="replace") for name in ("stdout", "stderr")
        )
        if check and answer["status"]:
            raise CommandError(f"{' '.join(arguments)}: status {answer['status']}: {errors.strip()}")
        return subprocess.CompletedProcess(arguments, answer["status"], output, errors)

    def write(self, inside: str, text: str | bytes, mode: int = 0o644) -> None:
        """Write a file, with the directories that it needs; owned by root."""
        self.run("install", "-D", "-m", f"{mode:o}", "/dev/stdin", inside, stdin=text)

    def unpack(self, directory: Path) -> None:
        """Write a whole tree of files."""
        packed = subprocess.run(
            ["tar", "--create", "--gzip", "--owner=0", "--group=0", "--directory", directory, "."],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        self.run("tar", "-xz", "--no-overwrite-dir", "-C", "/", stdin=packed)

    def wait_for(self, condition: str, what: str, deadline: float = 20.0) -> None:
        """Wait until a condition of the shell holds."""
        self.wait(lambda: self.run("sh", "-c", condition, check=False).returncode == 0, deadline, what)

    def wait(self, predicate: Callable[[], object], deadline: float = 10.0, what: str = "condition") -> None:
        """As `Host.wait`. A look takes the machine's only processor, so each pause is far longer than it."""
        wait_until(predicate, deadline * _SLOWER, what, rest=4.0, pause_max=math.inf)

    def wait_journal(
        self, predicate: Callable[[dict[str, str]], bool], deadline: float = 10.0, **matches: str
    ) -> dict[str, str]:
        """As `Host.wait_journal`."""
        found: list[dict[str, str]] = []

        def look() -> bool:
            found[:] = filter(predicate, self.journal(**matches))
            return bool(found)

        self.wait(look, deadline, f"the journal's entry {matches}")
        return found[0]

    def path(self, inside: str, *, follow: bool = True) -> Path:
        """Fail: nobody sees a machine's files from outside."""
        raise NotImplementedError

    def _plug(self, stack: ExitStack, tpm: str) -> list[str]:
        """Start a software TPM that QEMU switches on, and that ends with QEMU's connection."""
        state, control = self._directory / f"tpm-{tpm}", self._directory / "tpm"
        state.mkdir(exist_ok=True)
        control.unlink(missing_ok=True)
        # fmt: off
        swtpm = stack.enter_context(
            subprocess.Popen(
                ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl",
                 f"type=unixio,path={control}", "--log", f"file={state}.log"]
            )
        )
        # fmt: on
        stack.callback(swtpm.terminate)
        wait_until(control.exists, 20, "swtpm's socket")
        return [
            *("-chardev", f"socket,id=tpm,path={control}"),
            *("-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"),
        ]

    def _command(self, control: Path) -> list[str]:
        place = self._directory
        control.unlink(missing_ok=True)
        # fmt: off
        return [
            "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot",
            "-M", "q35", "-accel", "tcg", "-cpu", "max,la57=off", "-smp", "1", "-m", "1024",
            "-drive", f"if=pflash,format=raw,readonly=on,file={self._built.code}",
            "-drive", f"if=pflash,format=raw,file={place / 'variables'}",
            "-kernel", str(self._built.kernel), "-append", files.COMMAND_LINE,
            "-drive", f"if=none,id=disk,format=raw,cache=unsafe,file={place / 'disk'}",
            "-device", "nvme,drive=disk,serial=1",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=control,path={control},server=on,wait=off",
            "-device", f"virtserialport,chardev=control,name={files.PORT}",
            "-serial", f"file:{place / 'console'}",
        ]
        # fmt: on

    def _ask(self, line: bytes, seconds: float) -> dict[str, Any]:
        assert self._control is not None
        self._control.settimeout(seconds)
        self._control.sendall(line)
        answer: dict[str, Any] = json.loads(self._answer(b"\n", seconds))
        return answer

    def _answer(self, end: bytes, seconds: float) -> bytes:
        """All that the machine sends until it has sent this."""
        assert self._control is not None
        self._control.settimeout(seconds)
        parts: list[bytes] = []
        try:
            while not parts or not b"".join(parts[-2:]).endswith(end):
                parts.append(self._control.recv(1 << 16))
                if not parts[-1]:
                    raise HostError(f"the machine has ended: {self._said()}")
        except TimeoutError:
            words = self._said()
            raise HostError(f"no answer of the machine within {seconds:.0f} s: {words}") from None
        return b"".join(parts)

    def _said(self) -> str:
        said = [self._directory / name for name in ("qemu.log", "console")]
        return "\n".join(each.read_text(errors="replace")[-2000:] for each in said if each.exists())


def _connected(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)

    def connect() -> bool:
        if process.poll() is not None:
            raise HostError("QEMU has ended at once")
        with suppress(OSError):
            peer.connect(str(path))
            return True
        return False

    wait_until(connect, 20, "QEMU's socket")
    return peer
