# SPDX-License-Identifier: MIT
"""What a unit hides from the agent, by its settings. Links are followed; what is shown anyway is seen."""

from __future__ import annotations

import configparser
import os
from pathlib import Path
from typing import Any

import pytest

from credferry.agent.doctor import probe, source
from credferry.agent.doctor.chain import Chain
from credferry.agent.doctor.finding import UnseenError
from credferry.agent.source import sandbox

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("path", "setting"),
    [
        ("/tmp", "PrivateTmp=yes"),
        ("/tmp/v", "PrivateTmp=yes"),
        ("/var/tmp/a/b", "PrivateTmp=yes"),
        ("/home/alice/secrets", "ProtectHome=yes"),
        ("/root/secrets", "ProtectHome=yes"),
        ("/run/user/1000/secrets", "ProtectHome=yes"),
        ("/dev/mapper", "PrivateDevices=yes"),
        ("/dev/shm/secrets", None),
        ("/run/secrets", None),
        ("/run/users", None),
        ("/tmpfs/secrets", None),
        ("/srv/home", None),
    ],
)
def test_what_the_shipped_unit_hides(path: str, setting: str | None) -> None:
    """Temporary directories and homes, and nothing that only begins with their names."""
    found = sandbox.SHIPPED.hides(path)
    assert (found.setting if found else None) == setting


@pytest.mark.parametrize("unit", ["credferry.service", "credferry-seal.service", "credferry-seal@.service"])
def test_the_shipped_units_are_what_is_assumed(unit: str) -> None:
    """Both units hide what `SHIPPED` says, and hide nothing by other settings."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # its documented use
    parser.read(ROOT / "contrib/systemd" / unit)
    service = parser["Service"]
    assert {key: service[key] for key in ("ProtectHome", "PrivateTmp", "PrivateDevices")} == {
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
    }
    assert not {"InaccessiblePaths", "TemporaryFileSystem", "RootDirectory"} & service.keys()


@pytest.mark.parametrize(
    ("properties", "path", "is_hidden"),
    [
        ({"PrivateTmp": False}, "/tmp/v", False),
        ({"PrivateTmp": True, "BindReadOnlyPaths": [["/tmp/v", "/tmp/v", False, 0]]}, "/tmp/v/a", False),
        ({"PrivateTmp": True, "BindReadOnlyPaths": [["/tmp/v", "/tmp/v", False, 0]]}, "/tmp/w", True),
        ({"PrivateTmp": True, "BindPaths": [["/srv/v", "/tmp/v", False, 0]]}, "/tmp/v", False),
        ({"PrivateTmp": False, "PrivateTmpEx": "disconnected"}, "/tmp/v", True),
        ({"ProtectHome": "read-only"}, "/home/v", False),
        ({"ProtectHome": "yes", "BindPaths": [["/home/v", "/home/v", False, 0]]}, "/home/v", True),
        ({"ProtectHome": "tmpfs", "BindPaths": [["/home/v", "/home/v", False, 0]]}, "/home/v", False),
        ({"InaccessiblePaths": ["-/srv"]}, "/srv/v", True),
        ({"TemporaryFileSystem": [["/srv", "ro"]]}, "/srv/v", True),
        ({}, "/tmp/v", False),
    ],
)
def test_the_unit_s_own_settings_decide(properties: dict[str, Any], path: str, is_hidden: bool) -> None:
    """A drop-in may show a path, or hide another; nothing shows what is below an inaccessible one."""
    assert (sandbox.of_unit(properties).hides(path) is not None) == is_hidden


def test_links_are_followed(tmp_path: Path) -> None:
    """A link that leads to a hidden place, one that lies in one, and a secret's own link are found."""
    out, shown = tmp_path / "out", tmp_path / "shown"
    out.mkdir()
    shown.mkdir()
    (shown / "x").symlink_to(out)
    (out / "back").symlink_to(shown)
    (shown / "key").symlink_to(out / "key")
    hides = sandbox.of_unit({"InaccessiblePaths": [str(out)]})
    for path in (shown / "x", out / "back", shown / "x/missing/further", out / "missing"):
        assert sandbox.hidden(hides, str(path)) is not None, path
    assert sandbox.hidden(hides, str(shown)) is None
    assert sandbox.hidden(hides, str(shown), ["other"]) is None
    found = sandbox.hidden(hides, str(shown), ["key"])
    assert found is not None
    assert found.path == str(out / "key")


def test_no_name_that_a_producer_chose_is_in_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link can lead to any name. Root writes none into a unit, and a journal and a bus take it."""
    (tmp_path / "source").symlink_to(os.fsdecode(b"/tmp/\xff\nExecStartPre=+/srv/mine"))

    def unseen(_name: str) -> dict[str, Any]:
        raise UnseenError("no bus")

    monkeypatch.setattr(probe, "unit", unseen)
    file = tmp_path / "config.toml"
    file.write_text(f'[source]\npath = "{tmp_path}/source"\n')
    found = next(iter(source.check_seen(Chain(file, ()))))
    assert found.what.startswith(r"'/tmp/\udcff\nExecStartPre=+' is hidden from the agent by PrivateTmp")
    assert (found.remedy, found.commands) == ("publish below /run", ())


def test_steps_to_what_is_shown_are_there() -> None:
    """The directories above what is mounted into a private /tmp hide nothing, and are no source."""
    shown = sandbox.of_unit({"PrivateTmp": True, "BindPaths": [["/tmp/a/b", "/tmp/a/b", False, 0]]})
    assert sandbox.hidden(shown, "/tmp/a/b") is None
    assert shown.hides("/tmp/a") is not None


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("/tmp/v", ("BindReadOnlyPaths=-/tmp/v",)),
        ("/home/v", ("ProtectHome=tmpfs", "BindReadOnlyPaths=-/home/v")),
    ],
)
def test_the_drop_in_shows_it(path: str, lines: tuple[str, ...]) -> None:
    """The remedy has the exact lines, and with them the path is no longer hidden."""
    found = sandbox.SHIPPED.hides(path)
    assert found is not None
    assert found.lines == lines
    assert all(line in found.remedy for line in lines)
    properties = {"PrivateTmp": True, "ProtectHome": "yes"} | {
        key: [[value.lstrip("-"), value.lstrip("-"), True, 0]] if key.startswith("Bind") else value
        for key, value in (line.split("=") for line in lines)
    }
    assert sandbox.of_unit(properties).hides(path) is None
