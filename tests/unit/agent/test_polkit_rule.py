# SPDX-License-Identifier: MIT
"""What polkit's rule grants, for a configuration; that polkit heeds it is shown on a whole host."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from credferry.agent.cli.application import application
from credferry.agent.config.loading import parse
from credferry.agent.systemd.polkit import rule

CONFIG = rb"""
[vms.web]
unit = 'renamed-\x2dweb@1.service'
[vms.web.credentials]
A = { text = "a" }
[vms.db]
health = ["/bin/true"]
[vms.db.credentials]
A = { text = "a" }
[vms.live]
live = true
[vms.live.credentials]
A = { text = "a" }
"""
RESTARTS = ["try-restart"]


def granted(text: str) -> Any:  # noqa: ANN401 (JSON)
    """The table of what is granted: JSON, as what JavaScript reads there is."""
    found = re.search(r"var granted = (\{.*?\});", text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_exactly_the_configured_units() -> None:
    """Each VM's unit may be restarted where it runs, under whatever name, and started where it has failed.

    A health check may be started where there is one, and a push where the VM is live.
    """
    assert granted(rule(parse(CONFIG, Path("/c")), "credferry")) == {
        r"renamed-\x2dweb@1.service": RESTARTS,
        "microvm@db.service": RESTARTS,
        "microvm@live.service": RESTARTS,
        r"credferry-restart@renamed\x2d\x5cx2dweb\x401.service.service": ["start"],
        r"credferry-restart@microvm\x40db.service.service": ["start"],
        r"credferry-restart@microvm\x40live.service.service": ["start"],
        "credferry-health@db.service": ["start"],
        "credferry-push@live.service": ["start"],
    }


def test_nothing_configured() -> None:
    """Without VMs nothing is granted."""
    assert granted(rule(parse(b"", Path("/c")), "credferry")) == {}


def test_a_path_stays_in_its_comment() -> None:
    """The name of the configuration's file cannot become a part of the program."""
    text = rule(parse(CONFIG, Path("/c\npolkit.addRule();\u2028x")), "credferry")
    assert [line for line in text.splitlines() if "/c" in line] == [text.splitlines()[0]]
    assert text.count("polkit.addRule(") == 2
    assert text.isascii()


@pytest.mark.parametrize("user", ["", '"', "a b", "-x", "Root", "a" * 40])
def test_a_user_is_one(user: str, tmp_path: Path) -> None:
    """Anything but a user's name is refused as usage, with status 2."""
    (tmp_path / "config.toml").write_bytes(CONFIG)
    done = CliRunner().invoke(
        application(), ["polkit-rule", "--config", str(tmp_path / "config.toml"), f"--user={user}"]
    )
    assert done.exit_code == 2


def test_the_verb_prints_it(tmp_path: Path) -> None:
    """What is printed is the rule for the named user, and nothing else."""
    path = tmp_path / "config.toml"
    path.write_bytes(CONFIG)
    done = CliRunner().invoke(application(), ["polkit-rule", "--config", str(path), "--user=ferry"])
    assert done.stdout == rule(parse(CONFIG, path), "ferry")
    assert 'subject.user !== "ferry"' in done.stdout
