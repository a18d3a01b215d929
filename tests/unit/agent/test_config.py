# SPDX-License-Identifier: MIT
"""The configuration: what is accepted, and that every refusal names file, key and remedy."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.config.checks import is_secret_name
from credferry.agent.config.loading import load, parse
from credferry.agent.errors import ConfigurationError, ExitStatus, describe
from credferry.launcher.handoff import Channel, Kind

if TYPE_CHECKING:
    from credferry.agent.config.model import Config

FILE = Path("/etc/credferry/config.toml")
VM = '[vms.web.credentials]\nK = { secret = "k" }\n'
TEXT = '[vms.web.credentials]\nK = { text = "x" }\n'
MANY = "[vms.web.credentials]\n" + "".join(f'K{each} = {{ text = "x" }}\n' for each in range(65))
SEALED_VM = '[vms.web]\nguest_key = true\nchannel = "command"\n[vms.web.credentials]\n'

TWO_OF_ONE_UNIT = "".join(
    f'[vms.{name}]\nunit = "u.service"\n[vms.{name}.credentials]\nK = {{ text = "k" }}\n' for name in "ab"
)


def parsed(text: str) -> Config:
    """The configuration of a text."""
    return parse(text.encode(), FILE)


def test_defaults() -> None:
    """A VM needs no more than its credentials; the unit is microvm.nix's."""
    config = parsed(VM)
    vm = config.vm("web")
    assert (vm.unit, vm.channel, vm.kind("K")) == ("microvm@web.service", Channel.API, Kind.PLAIN)
    assert config.source.path == "/run/secrets"
    assert config.secrets == {"": {"k"}}


def test_the_id_of_a_configuration_is_computed_once() -> None:
    """Whoever may read it over the bus cannot have the agent hash a large configuration again and again."""
    config = parsed(VM)
    assert config.id is config.id
    other = msgspec.structs.replace(config, state_directory="/elsewhere")
    assert other.id != config.id == parsed(VM).id
    assert msgspec.structs.replace(other, state_directory=config.state_directory) == config


def test_kinds() -> None:
    """With a guest key secrets are sealed and texts are not, unless a credential says otherwise."""
    vm = parsed(
        SEALED_VM.replace('channel = "command"\n', "")
        + 'A = { secret = "a" }\nB = { secret = "b", seal = false }\nC = { text = "c" }\n'
        'D = { text = "d", seal = true }\n'
    ).vm("web")
    assert [vm.kind(name) for name in "ABCD"] == [Kind.SEALED, Kind.PLAIN, Kind.TEXT, Kind.SEALED]


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ("[source", "not TOML", "toml.io"),
        ("source = 3", "source: ", "man credferry.toml"),
        ('[sourcs]\npath = "/x"', "unknown field `sourcs`", "did you mean source"),
        ("sources = 1", "sources: expected a table", "[sources.NAME]"),
        ('[sources."a/b"]\npath = "/x"', "sources.a/b: not a source name", "A-Z"),
        ("[sources.acme]\nfollow_links = true", "sources.acme.path: is missing", "/var/lib/acme"),
        ('[sources.acme]\npath = "x"', "sources.acme.path: expected an absolute path", "man"),
        ("[sources]\nacme = 1", "sources.acme: expected", "man"),
        (TEXT.replace('"x"', '"x", source = "acme"'), "only a secret has", "leave out source"),
        (TEXT.replace('"x"', '"x", trim = true'), "only a secret has it", "leave out trim"),
        ('[vms.web]\npairs = [["K", "L"]]\n' + VM, "web.pairs: there is no credential 'L'", "use one of K"),
        ('[vms.web]\npairs = [["K", "K"]]\n' + VM, "'K' is paired with itself", "TLS_CERT"),
        ('[vms.web]\npairs = [["K"]]\n' + VM, "vms.web.pairs[0]: expected `array` of length 2", "man"),
        (VM.replace('"k"', '"k", field = "a"'), "'k' is written in is not known", "'yaml'"),
        (VM.replace('"k"', '"k.json", format = "json"'), "no field to take", "name a field"),
        (VM.replace('"k"', '"k.json", field = "a..b"'), "has an empty part", "write db"),
        (VM.replace('"k"', '"k", field = "a", format = "ini"'), "format", "json, yaml, dotenv"),
        ('[sources.acme]\npath = "/x"\n[vms.web.credentials]\nK = { secret = "k", source = "amce" }',
         "vms.web.credentials.K.source: there is no source 'amce'", "use acme; or add a table [sources.am"),
        ('[source]\npaht = "/x"', "source: ", "did you mean path"),
        ('[source]\npath = "relative"', "source.path: expected an absolute path", "man"),
        ("[source]\nquiet_seconds = -1", "source.quiet_seconds", "man"),
        ("[rollout]\nattempts = 0", "rollout.attempts", "man"),
        ('[rollout]\npolicy = "hld"', "rollout.policy: unknown value", "restart, hold, approve, ignore"),
        ('[metrics]\ntextfile = "/x"', "metrics.textfile: expected an absolute path of", "man"),
        ("vms = 1", "vms: expected a table", "[vms.NAME]"),
        ("[vms.web]\ninitrd = true\n" + VM, "vms.web.initrd", "guest_key = true"),
        ("[vms.web]\nlive = true\ninitrd = true\nguest_key = true\n" + VM, "vms.web.live", "initrd or live"),
        ('[vms.web]\nlive = true\nchannel = "command"\n' + TEXT, "vms.web.live", "guest_key = true"),
        (f'[vms.web]\nguest_machine_id = "{"1" * 32}"\n' + VM, "guest_machine_id", "guest_key = true"),
        ('[vms.web]\nguest_machine_id = "web"\n' + VM, "expected 32 hexadecimal digits", "man"),
        (f'[vms.web]\nguest_machine_id = "{"0" * 32}"\n' + VM, "expected 32 hexadecimal digits", "man"),
        ("[vms.web]\nlive = true\n" + MANY, "vms.web.live: a push takes at most 64", "pass fewer"),
        ('[vms.web.credentials]\n"credferry.manifest" = { text = "x" }', "the agent itself", "another name"),
        ("[vms]\nweb = 1", "vms.web: expected a table", "[vms.web]"),
        ("[vms.web]", "vms.web.credentials", "API_KEY"),
        ('[vms.web]\nname = "x"\n' + VM, "unknown key 'name'", "remove"),
        ('[vms."a/b".credentials]\nK = { secret = "k" }', "vms.a/b", "A-Z"),
        ('[vms.web]\nchannel = "smoke"\n' + VM, "vms.web.channel: unknown value", "use one of api, command"),
        ("[vms.web]\nchanel = 1\n" + VM, "vms.web: ", "did you mean channel"),
        ('[vms.web]\nunit = "web"\n' + VM, "vms.web.unit", ".service"),
        ('[vms.web]\nunit = "; x.service"\n' + VM, "vms.web.unit", ".service"),
        ('[vms.web]\nunit = "microvm@.service"\n' + VM, "vms.web.unit", ".service"),
        ("x = " + "9" * 5000, "not TOML", "toml.io"),
        ("[vms.web.credentials]\nK = {}", "vms.web.credentials.K", "text"),
        ('[vms.web.credentials]\nK = { secret = "k", text = "t" }', "vms.web.credentials.K", "text"),
        ('[vms.web.credentials]\nK = { secrets = "k" }', "vms.web.credentials.K", "did you mean secret"),
        ('[vms.web.credentials]\nK = "k"', "vms.web.credentials.K", "man"),
        ('[vms.web.credentials]\n"a b" = { secret = "k" }', "vms.web.credentials.a b", "A-Z"),
        (f'[vms.web.credentials]\n{"x" * 240} = {{ secret = "k" }}', "not a credential name", "239"),
        ('[vms.web.credentials]\nK = { secret = "../k" }', "leads out of the source", "relative"),
        ('[vms.web.credentials]\nK = { secret = "/k" }', "leads out of the source", "relative"),
        ('[vms.web.credentials]\nK = { text = "" }', "vms.web.credentials.K.text", "remove"),
        ('[vms.web.credentials]\n"ssh.listen" = { text = "x" }', "power over the guest", "allow_names"),
        ('[vms.web.credentials]\nK = { secret = "k", seal = true }', "no guest key", "guest-key create"),
        ('[vms.web]\nchannel = "command"\n' + VM, "/proc/PID/cmdline", "guest_key"),
        ('[vms.web]\nchannel = "directory"\nlive = true\n' + VM, "vms.web.live", "leave out live"),
        ('[vms.web]\nchannel = "directory"\ninitrd = true\n' + VM, "vms.web.initrd", "leave out initrd"),
        ('[vms.web]\nchannel = "directory"\nplaintext_in_argv = true\n' + VM, "plaintext_in_argv", "leave"),
        (TWO_OF_ONE_UNIT, "vms.b.unit", "of its own"),
        ('file = "/x"', "unknown key 'file'", "remove"),
    ],
)  # fmt: skip
def test_refusals(text: str, key: str, remedy: str) -> None:
    """Each mistake is refused with the file, the key and what to do, in one line."""
    with pytest.raises(ConfigurationError) as caught:
        parsed(text)
    assert str(caught.value).startswith(f"{FILE}: ")
    assert key in str(caught.value)
    assert remedy in caught.value.hint
    assert "\n" not in str(caught.value) + caught.value.hint
    assert caught.value.status is ExitStatus.CONFIGURATION


def test_powerful_names_can_be_allowed() -> None:
    """A credential that gives power over the guest goes through where it is allowed by name."""
    text = '[vms.web]\nallow_names = ["ssh.listen"]\n[vms.web.credentials]\n"ssh.listen" = { text = "x" }'
    assert parsed(text).vm("web").delivery.allowed_names == ("ssh.listen",)


def test_unknown_vm() -> None:
    """An unknown VM is refused with the nearest known one."""
    with pytest.raises(ConfigurationError, match="no VM 'wbe'") as caught:
        parsed(VM).vm("wbe")
    assert "use web" in caught.value.hint
    many = "".join(
        VM.replace("web", name) for name in ("mail-1", "mail-2", "db-primary", "build-worker", "web")
    )
    with pytest.raises(ConfigurationError) as caught:
        parsed(many).vm("mial-1")
    assert caught.value.hint.startswith("use mail-1, mail-2 or ")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"#" * (2 << 20)])
def test_unreadable_files(tmp_path: Path, content: bytes | None) -> None:
    """A missing file, one that is not text, and one without bounds are refused with its name."""
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=str(path)):
        load(path)


@given(st.binary(max_size=200))
def test_no_input_raises_anything_else(content: bytes) -> None:
    """Whatever a file holds, it is a configuration or a `ConfigurationError`."""
    with contextlib.suppress(ConfigurationError):
        parse(content, FILE)


@given(st.text())
def test_secret_names_stay_inside(name: str) -> None:
    """A name that is accepted never resolves, lexically, to a place outside of the source."""
    if is_secret_name(name):
        inside = Path("/run/secrets", name)
        assert not name.startswith("/")
        assert inside.parts[:3] == ("/", "run", "secrets")
        assert ".." not in inside.parts


SEALED = '[vms.web.credentials]\nA = { secret = "a" }\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('seal_key = "tpm"', "use one of host, host\\+tpm2, tpm2, auto"),
        ('tpm2_pcrs = "7"', 'or set seal_key = "host\\+tpm2"'),
        ('tpm2_public_key = "/a.pem"', "leave out tpm2_public_key"),
        ('seal_key = "tpm2"\ntpm2_pcrs = "7,8"', "numbers of PCRs"),
        ('seal_key = "tpm2"\nmachine_id_file = "/other"', "reads /etc/machine-id only"),
    ],
)
def test_bad_settings_of_a_tpm(text: str, said: str) -> None:
    """Settings that have no effect, that systemd does not take, or that would cost a key are refused."""
    with pytest.raises(ConfigurationError) as caught:
        parse(f"{text}\n{SEALED}".encode(), Path("c.toml"))
    assert re.search(said, describe(caught.value))


@pytest.mark.parametrize("pcrs", ["", "7", "0+7", "11+14+23"])
def test_pcrs(pcrs: str) -> None:
    """PCRs are passed on as they are written; none are, too."""
    config = parse(f'seal_key = "host+tpm2"\ntpm2_pcrs = "{pcrs}"\n{SEALED}'.encode(), Path("c.toml"))
    assert (config.seal_key.value, config.tpm2_pcrs) == ("host+tpm2", pcrs)
