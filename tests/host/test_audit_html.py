# SPDX-License-Identifier: MIT
"""The audit's page of a real run, opened in a real browser that has no network.

``CREDFERRY_SCREENSHOT=docs/images/audit-timeline.png`` keeps the picture that the documentation shows.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import Deployment, broken_by_bad
from tests.support.host import patience
from tests.support.installation import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.host import Host
    from tests.support.producer import SopsNix

CONFIG = """
[source]
quiet_seconds = 0.1
resync_seconds = 0.5
[rollout]
attempts = 1
stamp_seconds = 30.0
[vms.shop]
after = ["ledger"]
[vms.shop.credentials]
API_TOKEN = { secret = "api-token" }
DB_PASSWORD = { secret = "db-password" }
[vms.ledger.credentials]
DB_PASSWORD = { secret = "db-password" }
"""
WIDTH, HEIGHT = 1000, 640
LIGHT, DARK = "f5f6f8", "14171b"
"""The page's background in either scheme; white would mean that its style was not let in."""


@pytest.fixture
def page(host: Host, sops: SopsNix, tmp_path: Path) -> Iterator[Path]:
    """The page of a run with a rotation, one back, a failure and a VM that was stopped."""
    made = Deployment(host)
    made.add_vm("ledger", broken_by_bad("DB_PASSWORD"))
    made.add_vm("shop")
    # What a bad value breaks has failed at once, and is not waited for.
    once = "/etc/systemd/system/microvm@ledger.service.d/60-once.conf"
    host.write(once, "[Service]\nRestartPreventExitStatus=1\n")
    host.run("systemctl", "daemon-reload")
    made.configure(CONFIG)
    since = host.run("date", "+@%s.%N").stdout.strip()
    first = {"api-token": b"one", "db-password": b"first"}
    sops.publish(first)
    made.credferry("agent", "--once")
    made.start_vm("ledger", "shop")
    made.start_agent()
    for values in (
        first | {"db-password": b"second"},
        first,
        {"api-token": b"two", "db-password": b"first"},
    ):
        sops.publish(values)
        for name in ("ledger", "shop"):
            made.wait_in_step(name)
    sops.publish({"api-token": b"two", "db-password": b"bad"})
    host.wait(lambda: "rolled back to" in " ".join(made.status()["ledger"]["reasons"]), 30, "rollback")
    host.run("systemctl", "stop", "credferry.service", "microvm@shop.service")
    made.credferry("audit", "--since", since, "--html", "/tmp/audit.html")
    path = tmp_path / "audit.html"
    path.write_bytes(host.path("/tmp/audit.html").read_bytes())
    yield path
    made.close()


def browser(page: Path, *options: str) -> str:
    """What a headless Chromium without any network prints about a page."""
    command = ["unshare", "--net", "chromium-headless-shell", "--no-sandbox", "--disable-gpu"]
    command += ["--no-first-run", "--hide-scrollbars", f"--user-data-dir={page.parent}/browser"]
    command += [f"--window-size={WIDTH},{HEIGHT}", *options, page.as_uri()]
    return subprocess.run(
        command, capture_output=True, check=True, text=True, timeout=90 * patience()
    ).stdout


def first_pixel(picture: Path) -> str:
    """The colour at the top left of a PNG of 8-bit RGB; no filter changes that one (PNG, clause 9)."""
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">IIBB", data[16:26]) == (WIDTH, HEIGHT, 8, 2)
    place, pixels = 8, b""
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            pixels += data[place + 8 : place + 8 + length]
        place += 12 + length
    return zlib.decompress(pixels)[1:4].hex()


def in_order(looks: list[str]) -> list[int]:
    """Looks by the order of their first appearance."""
    return [[*dict.fromkeys(looks)].index(each) for each in looks]


def test_a_timeline_in_a_browser(page: Path) -> None:
    """Shown are a timeline per VM, its bars and events, and each rotation's story, in light and dark."""
    tree = browser(page, "--dump-dom")
    vms = re.findall(r'<section id="vm-([a-z]+)">', tree)
    assert vms == ["ledger", "shop"]
    timelines = dict(zip(vms, re.findall(r"<svg.*?</svg>", tree, re.DOTALL), strict=True))
    bars = {
        vm: in_order(re.findall(r'<rect class="(f\d+[^"]*?)(?: open)?"', svg))
        for vm, svg in timelines.items()
    }
    # Started, rotated, back to the first value, left alone, and put back after the failure.
    assert bars["ledger"] == [0, 1, 0, 0]
    assert len(bars["shop"]) == 8
    assert "mark-bad" in timelines["ledger"]
    assert "mark-bad" not in timelines["shop"]
    assert len(re.findall(r'<details class="rotation(?: fine)?" data-run="[0-9a-f]{32}"', tree)) == 9
    assert tree.count('class="revert"') == 2
    assert '<span class="bad">rolled back</span>' in tree
    for value in (b"first", b"second", b"one", b"two"):
        assert f">{value.decode()}<" not in tree
    light, dark = page.with_name("light.png"), page.with_name("dark.png")
    browser(page, f"--screenshot={light}")
    browser(page, f"--screenshot={dark}", "--blink-settings=preferredColorScheme=0")
    assert (first_pixel(light), first_pixel(dark)) == (LIGHT, DARK)
    if wanted := os.environ.get("CREDFERRY_SCREENSHOT"):
        picture = CHECKOUT / wanted
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(light.read_bytes())
