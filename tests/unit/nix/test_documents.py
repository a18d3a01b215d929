# SPDX-License-Identifier: MIT
"""Nix in the documents: each block parses, and those of the tutorial make the host that it promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from credferry.agent.config.loading import parse
from tests.support.documents import snippets
from tests.support.nix import CHECKOUT, Nix, to_toml

PAGES = sorted(
    [*(CHECKOUT / "docs").rglob("*.md"), CHECKOUT / "README.md", CHECKOUT / "contrib/clan/README.md"]
)
TUTORIAL = CHECKOUT / "docs/tutorial-nixos.md"
GUEST = "{ microvm.vms.test-vm.config.imports = [ t.guestModule ]; }"
PRODUCERS = {
    "sops-nix": ("sops.defaultSopsFile", "sops", "/run/secrets"),
    "agenix": ("age.secrets", "age", "/run/agenix"),
}


def test_every_block_parses(nix: Nix, tmp_path: Path) -> None:
    """As a whole file, or as what stands within a module."""
    found = 0
    for page in PAGES:
        for line, text in snippets(page, "nix"):
            file = tmp_path / f"{page.stem}-{line}.nix"
            is_whole = re.match(r"(?:#.*\n)*\s*[{(]", text)
            file.write_text(text if is_whole else f"{{ config, ... }}:\n{{\n{text}\n}}\n")
            nix.parse(file)
            found += 1
    assert found > 5


@pytest.mark.parametrize("producer", PRODUCERS)
def test_the_tutorial_s_host(nix: Nix, tmp_path: Path, producer: str) -> None:
    """Its files together are refused nothing, and the agent is told what the VM gets."""
    blocks = [text for _, text in snippets(TUTORIAL, "nix")]
    [host] = [text for text in blocks if "show-key" in text]
    option, module, source = PRODUCERS[producer]
    [publishing] = [text for text in blocks if text.startswith(f"{{\n  {option}")]
    modules = [
        f"t.producers.{module}",
        str(_written(tmp_path, "producer", publishing)),
        str(_written(tmp_path, "host", host.replace("/run/secrets", source))),
    ]
    report = nix.evaluate(f"t.report (t.host [ {' '.join(modules)} {GUEST} ])")
    assert report["failed"] == []
    assert report["guests"]["test-vm"]["failed"] == []
    assert report["settings"]["vms"]["test-vm"]["credentials"]["API_KEY"]["secret"] == "api-key"
    assert report["settings"]["source"]["path"] == source


def test_the_agent_takes_what_the_page_of_nixos_sets(nix: Nix, tmp_path: Path) -> None:
    """Each module on the page for `services.credferry` makes a file that the agent accepts."""
    page = CHECKOUT / "docs/nixos.md"
    found = [
        text
        for _, text in snippets(page, "nix")
        if "services.credferry" in text and "inputs" not in text and "pkgs" not in text
    ]
    assert len(found) > 1
    for number, text in enumerate(found):
        module = _written(tmp_path, f"module-{number}", text)
        freeform = "{ options.services.prometheus = t.lib.mkOption { type = t.lib.types.attrs; }; }"
        report = nix.evaluate(f"t.report (t.sopsHost (t.example ++ [ {module} {freeform} ]))")
        assert report["failed"] == []
        parse(to_toml(report["settings"]).encode(), Path("/etc/credferry/config.toml"))


def _written(directory: Path, name: str, text: str) -> Path:
    path = directory / f"{name}.nix"
    path.write_text(text)
    return path
