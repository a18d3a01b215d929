# SPDX-License-Identifier: MIT
"""``--check``: a command line is judged as a start judges it, with no credentials and no start."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from credferry.launcher import plan as plans
from credferry.launcher.__main__ import main
from credferry.launcher.credentials import read
from credferry.launcher.errors import Exit, LaunchError
from credferry.launcher.handoff import LAUNCHED, Channel, Delivery, Kind

from .conftest import credentials, sealed
from .test_main import GENERATED, KERNEL, hypervisor, request, run

if TYPE_CHECKING:
    from pathlib import Path

NOTIFY = "oem_strings=[io.systemd.credential:vmm.notify_socket=vsock-stream:2:8888]"


def judge(
    capsys: pytest.CaptureFixture[str], *words: str, argv: tuple[str, ...] = KERNEL
) -> tuple[int | str | None, str]:
    """The exit status of ``--check --major 53 WORDS -- ARGV``, and its line. JSON says the same."""
    capsys.readouterr()
    try:
        main(["--check", "--major", "53", *words, "--", *argv])
    except SystemExit as end:
        status = end.code
    else:
        status = 0
    done = capsys.readouterr()
    if status:
        answer = json.loads(done.out)
        assert done.err == f"credferry-launch: {answer['refused']}: {answer['hint']}\n"
    else:
        assert not done.out
    return status, done.err


def test_a_command_line_that_a_start_would_accept_is_accepted_in_silence() -> None:
    """As a process, without a credential directory and without cloud-hypervisor: status 0, and no output."""
    words = ("--check", "--major", "53", "--kinds", "plain,sealed,text", "--channel", "api", "--", *KERNEL)
    done = run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


REFUSED: list[tuple[tuple[str, ...], tuple[str, ...], Exit, str]] = [
    ((), (*KERNEL, "--gpu", "x"), Exit.USAGE, "--gpu"),
    ((), (*KERNEL, "-v"), Exit.USAGE, "-v would make cloud-hypervisor log credential plain"),
    (("--kinds", "API_KEY=plain"), (*KERNEL, "-v"), Exit.USAGE, "log credential API_KEY"),
    ((), ("--memory", "size=1G"), Exit.USAGE, "neither --kernel nor --firmware"),
    (("--channel", "command"), KERNEL, Exit.CREDENTIALS, "/proc/PID/cmdline"),
    (("--initrd", "--kinds", "sealed"), KERNEL, Exit.USAGE, "--initramfs"),
    (
        ("--kinds", "vmm.notify_socket=plain"),
        (*KERNEL, "--platform", NOTIFY),
        Exit.CREDENTIALS,
        "credential vmm.notify_socket is given twice",
    ),
    ((), (*KERNEL, "--platform", f"oem_strings=[{'x' * 4090}]"), Exit.CREDENTIALS, "4091 bytes"),
    ((), ("--version",), Exit.USAGE, "--version"),
]


@pytest.mark.parametrize(
    ("words", "argv", "status", "said"), REFUSED, ids=[each[3].split()[0] + str(each[0]) for each in REFUSED]
)
def test_what_a_start_would_refuse_is_refused(
    words: tuple[str, ...],
    argv: tuple[str, ...],
    status: Exit,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The start's exit status, and its one line, which names the word."""
    found, line = judge(capsys, *words, argv=argv)
    assert found == status
    assert said in line
    assert line.count("\n") == 1


ACCEPTED: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("--kinds", "sealed"), (*KERNEL, "-v")),
    (("--kinds", "sealed,text", "--channel", "command"), (*KERNEL, "--gpu", "x")),
    (("--channel", "command", "--plaintext-in-argv"), KERNEL),
    (("--kinds", "sealed", "--initrd"), (*KERNEL, "--initramfs", "/i")),
    (("--guest-systemd", "257"), (*KERNEL, "--platform", f"oem_strings=[{'x' * 4090}]")),
    (("--kinds", ""), (*KERNEL, "-v")),
    (("--kinds", "vmm.notify=plain"), (*KERNEL, "--platform", NOTIFY)),
]


@pytest.mark.parametrize(("words", "argv"), ACCEPTED, ids=[str(each[0]) for each in ACCEPTED])
def test_each_option_of_the_check_counts(
    words: tuple[str, ...], argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """What only another channel, kind, name or guest would have refused is accepted."""
    assert judge(capsys, *words, argv=argv) == (0, "")


@pytest.mark.parametrize("case", GENERATED, ids=lambda case: case["name"])
@pytest.mark.parametrize("channel", LAUNCHED)
def test_the_check_and_a_start_agree(
    channel: Channel, case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over all recorded commands: the same line and status as a plan with credentials of these kinds."""
    credentials(tmp_path, {"A": (Kind.SEALED, sealed()), "B": (Kind.TEXT, b"t")}, Delivery(channel=channel))
    asked = request(case)
    try:
        plans.make(asked, read(tmp_path))
    except LaunchError as error:
        expected = int(error.status), f"credferry-launch: {error.args[0]}: {error.hint}\n"
    else:
        expected = 0, ""
    words = ("--major", str(asked.major), "--kinds", "A=sealed,B=text", "--channel", channel.value)
    assert judge(capsys, *words, argv=(case["argv0"], *case["argv"][1:])) == expected


def test_the_version_is_asked_where_it_is_not_given(tmp_path: Path) -> None:
    """As at a start: ``--real`` is run with ``--version``, and with nothing else."""
    real = hypervisor(tmp_path, "v45.0")
    done = run("--check", "--real", str(real), "--", *KERNEL)
    assert done.returncode == Exit.USAGE
    assert "cloud-hypervisor 45 is older than 46" in done.stderr
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_spec_is_judged_as_well(tmp_path: Path) -> None:
    """A VM from a file, where its kernel's options go through the same judgement."""
    spec = tmp_path / "vm.toml"
    spec.write_text('name = "web"\nkernel = "/k"\noptions = ["--gpu", "x"]\n')
    done = run("--spec", str(spec), "--check", "--major", "53")
    assert done.returncode == Exit.USAGE
    assert "--gpu" in done.stderr
    spec.write_text('name = "web"\nkernel = "/k"\n')
    assert run("--spec", str(spec), "--check", "--major", "53").returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--check", "--"), "--real is missing"),
        (("--check", "--major", "new", "--"), "--major is not a number"),
        (("--check", "--major", "٥٣", "--"), "--major is not a number"),
        (("--check", "--major", "53", "--guest-systemd", "x", "--"), "--guest-systemd is not a number"),
        (("--check", "--major", "53", "--channel", "smoke", "--"), "--channel is neither"),
        (("--check", "--major", "53", "--kinds", "secret", "--"), "--kinds is not a list"),
        (("--check", "--major", "53", "--kinds", "a b=plain", "--"), "--kinds is not a list"),
        (("--check", "--explain", "--major", "53", "--"), "--explain and --check"),
        (("--real", "/x", "--kinds", "plain", "--", *KERNEL), "--kinds goes with --check only"),
        (("--real", "/x", "--initrd", "--", *KERNEL), "--initrd goes with --check only"),
        (
            ("--check", "--major", "53", "--spec", "x", "--tap-up"),
            "--tap-up can only be combined",
        ),
    ],
)
def test_options_of_the_check_that_make_no_sense(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and status 64; never a start that ignored them."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == Exit.USAGE
    assert said in capsys.readouterr().err


def test_a_refusal_of_a_check_is_no_record_of_a_vm_that_was_not_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing reaches the journal; a start with ``--check`` among the hypervisor's words is still recorded.

    The journal's sender is replaced here, as only what is handed to it matters.
    """
    sent: list[str] = []
    monkeypatch.setattr("credferry.launcher.journal.send", lambda message, **_: sent.append(message))
    judge(capsys, argv=(*KERNEL, "--gpu", "x"))
    assert sent == []
    with pytest.raises(SystemExit):
        main(["--real", "/x", "--hypervisor-version", "53", "--", *KERNEL, "--check"])
    assert len(sent) == 1


SEALED_FOR_INITRD = ("--kinds", "sealed", "--initrd", "--channel", "command")
INITRAMFS = (*KERNEL, "--initramfs", "/i")


@pytest.mark.parametrize("channel", ["api", "command"])
@pytest.mark.parametrize("kind", ["plain", "sealed", "text"])
@pytest.mark.parametrize(
    ("word", "argv"),
    [
        ("--platform tdx=on", ("--platform", "tdx=on")),
        ("--platform sev_snp=on", ("--platform=uuid=a,sev_snp=true",)),
        ("--platform tdx=on", ("--platform", 'tdx=off,tdx="on"')),
        ("--platform sev_snp=on", ("--platform", "oem_strings=[a=b],sev_snp= ON ")),
        ("--igvm", ("--igvm", "/igvm")),
    ],
    ids=str,
)
def test_a_confidential_guest_gets_no_oem_strings(
    word: str, argv: tuple[str, ...], kind: str, channel: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its systemd ignores SMBIOS: refused in both channels, for any kind, with the initrd as the way out."""
    status, line = judge(
        capsys, "--kinds", kind, "--channel", channel, "--plaintext-in-argv", argv=(*INITRAMFS, *argv)
    )
    assert status == Exit.CREDENTIALS
    assert f"credential {kind} would not arrive: {word} makes the guest confidential" in line
    assert "initrd = true" in line
    assert line.count("\n") == 1


def test_a_confidential_guest_gets_what_is_sealed_in_its_initrd(capsys: pytest.CaptureFixture[str]) -> None:
    """In the command channel, with every value sealed; a text beside them is refused until it is sealed."""
    argv = (*INITRAMFS, "--platform", "sev_snp=on")
    assert judge(capsys, *SEALED_FOR_INITRD, argv=argv) == (0, "")
    status, line = judge(capsys, *SEALED_FOR_INITRD, "--kinds", "sealed,text", argv=argv)
    assert (status, "credential text would not arrive" in line) == (Exit.CREDENTIALS, True)


def test_an_igvm_guest_has_no_initrd_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    """cloud-hypervisor boots what is in the IGVM file, and no initramfs: what would be lost is refused."""
    status, line = judge(capsys, *SEALED_FOR_INITRD, argv=(*INITRAMFS, "--igvm", "/igvm"))
    assert status == Exit.USAGE
    assert "there is no --initramfs that could carry credential sealed" in line


@pytest.mark.parametrize("platform", ["tdx=off", "sev_snp=false,tdx=", "tdx=on,tdx=off", ""])
def test_a_guest_that_is_not_confidential_gets_them(
    platform: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the command line switches off, last, is off."""
    words = ("--channel", "command", "--kinds", "sealed")
    assert judge(capsys, *words, argv=(*KERNEL, "--platform", platform)) == (0, "")
