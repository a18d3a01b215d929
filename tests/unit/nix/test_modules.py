# SPDX-License-Identifier: MIT
"""The NixOS modules and the clan service: what a configuration becomes, and what is refused."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from credferry.agent.config.loading import parse
from credferry.agent.config.model import Policy
from credferry.agent.config.secrets import Format, SourceConfig
from credferry.agent.config.units import AfterFails, BeforeFails, Units
from credferry.agent.errors import ConfigurationError, describe
from credferry.launcher.handoff import Channel, Kind
from tests.support.installation import CHECKOUT
from tests.support.nix import Nix, NixError, to_toml

if TYPE_CHECKING:
    from credferry.agent.config.model import Config

VM = "services.credferry.vms.test-vm"
STRINGS = "microvm.vms.test-vm.config.microvm.cloud-hypervisor.platformOEMStrings"
SERVED = f'{{ services.credferry.enable = true; {VM}.credentials.A.text = "a"; }}'
GUEST = "microvm.vms.test-vm.config"
WEB = 'services.credferry.vms.web.credentials.A.text = "a";'
WRAPPED = """
    imports = [ t.guestModule ];
    credferry.enable = true;
    microvm.hypervisor = "cloud-hypervisor";
"""
TDX = """
    credferry.importInInitrd = true;
    microvm.cloud-hypervisor.extraArgs = [ "--platform" "tdx=on" ];
"""
FILLED = (
    "credentials.FILLED.text = builtins.substring 0 2600 (builtins.toString (builtins.genList (x: x) 999));"
)
BIG = 'builtins.concatStringsSep "" (builtins.genList (_: "0123456789") 500)'


def sops(*modules: str) -> str:
    """A host with sops-nix, the example's modules, and more."""
    return f"t.report (t.sopsHost (t.example ++ [ {' '.join(modules)} ]))"


def config_of(report: Any) -> Config:  # noqa: ANN401 (a report is JSON)
    """What the agent makes of a host's settings."""
    return parse(to_toml(report["settings"]).encode(), Path("/etc/credferry/config.toml"))


def test_example(nix: Nix) -> None:
    """The example deployment is valid, and the agent takes its configuration for what it is meant to say."""
    report = nix.evaluate(sops())
    assert report["failed"] == []
    vm = config_of(report).vm("test-vm")
    assert (vm.unit, vm.channel, vm.guest_systemd) == ("microvm@test-vm.service", Channel.API, 257)
    assert {name: vm.kind(name) for name in vm.credentials} == {
        "API_KEY": Kind.PLAIN,
        "CLUSTER": Kind.TEXT,
        "ENVIRONMENT": Kind.TEXT,
    }
    assert vm.credentials["API_KEY"].secret == "api-key"
    assert vm.credentials["CLUSTER"].text == "britton-desktop"
    guest = report["guests"]["test-vm"]
    assert guest["hypervisor"].startswith("credferry-cloud-hypervisor-")
    assert guest["failed"] == []
    assert guest["kernelModules"] == ["dmi_sysfs"]
    assert guest["initrdModules"] == []


def test_template_s_vm(nix: Nix) -> None:
    """The template's VM is live, gets its secret, and is refused nothing."""
    vm = '(t.root + "/contrib/template/vm.nix")'
    report = nix.evaluate(
        "t.report (t.sopsHost [ { sops.secrets.api-key = { }; services.credferry.enable = true;"
        f" microvm.vms.my-vm.config.imports = [ t.guestModule {vm} ]; }} ])"
    )
    assert (report["failed"], report["guests"]["my-vm"]["failed"]) == ([], [])
    assert config_of(report).vm("my-vm").live


def test_configuration_is_checked_when_built(nix: Nix) -> None:
    """/etc/credferry/config.toml is what `credferry check` accepted, unless that is turned off."""
    built = nix.evaluate(sops())["etc"]["credferry/config.toml"]
    assert "/bin/credferry check --config /nix/store/" in built
    assert (
        "check"
        not in nix.evaluate(sops("{ services.credferry.checkConfig = false; }"))["etc"][
            "credferry/config.toml"
        ]
    )


def test_arguments_are_judged_when_built(nix: Nix) -> None:
    """The launcher judges the script of each VM that is declared here, unless that is turned off."""
    [script] = nix.evaluate(sops())["checks"]
    assert re.search(
        "set -- --runner test-vm=/nix/store/[^ ]+-microvm-cloud-hypervisor-[^ ]+/bin/microvm-run\n", script
    )
    assert re.search('/bin/credferry check --config /nix/store/[^ ]+ "\\$@" >/dev/null', script)
    assert nix.evaluate(sops("{ services.credferry.checkConfig = false; }"))["checks"] == []
    assert nix.evaluate(f"t.report (t.sopsHost [ {SERVED} ])")["checks"] == []


def test_checks_have_systemd_analyze(nix: Nix) -> None:
    """Where a check of the agent's runs in a build, the program that reads windows is on its path."""
    modules = "{ services.credferry.unprivileged = true; }"
    assert (
        nix.evaluate(
            f"""
        let config = (t.sopsHost (t.example ++ [ {modules} ])).config; in
        map (package: map (tool: tool.pname) package.nativeBuildInputs) ([
          config.environment.etc."credferry/config.toml".source
          config.environment.etc."polkit-1/rules.d/50-credferry.rules".source
        ] ++ config.system.checks)
        """
        )
        == [["systemd"]] * 3
    )


def test_a_build_s_errors_name_options() -> None:
    """What `credferry check` refuses is said with the names that stand in a NixOS configuration."""
    cases = {
        '[vms.web.credentials]\n"ssh.listen" = { text = "x" }\n': (
            "services.credferry.vms.web.credentials.ssh.listen: ",
            'allowNames = ["ssh.listen"] in services.credferry.vms.web',
        ),
        '[vms.web]\ninitrd = true\n[vms.web.credentials]\nA = { text = "x" }\n': (
            "services.credferry.vms.web.initrd: ",
            "guestKey = true in services.credferry.vms.web",
        ),
        '[rollout]\ncanaries = ["a"]\n': ("services.credferry.settings.rollout.canaries: ", ""),
        '[vms.web.units]\non_failure = "x"\n[vms.web.credentials]\nA = { text = "x" }\n': (
            "services.credferry.vms.web.units.onFailure: ",
            "",
        ),
    }
    for text, parts in cases.items():
        with pytest.raises(ConfigurationError) as caught:
            parse(text.encode(), Path("/nix/store/0-credferry.toml"))
        message = f"credferry: {describe(caught.value)}"
        sed = ["sed", "-E", "-f", str(CHECKOUT / "contrib/nixos/options.sed")]
        shown = subprocess.run(sed, input=message, capture_output=True, text=True, check=True).stdout
        assert all(part in shown for part in parts), shown
        assert not re.search("/nix/store|[a-z]_[a-z]", shown), shown


def test_a_vm_that_is_declared_nowhere(nix: Nix) -> None:
    """A name that no VM has is a warning, unless its unit is named, or VMs are made by hand alone."""
    [warning] = nix.evaluate(sops(f"{{ {WEB} }}"))["warnings"]
    assert "services.credferry.vms.web: no VM of this name" in warning
    assert "microvm.vms has: test-vm" in warning
    named = 'services.credferry.vms.web.unit = "microvm@web.service";'
    assert nix.evaluate(sops(f"{{ {WEB} {named} }}"))["warnings"] == []
    assert nix.evaluate(sops())["warnings"] == []
    assert nix.evaluate(f"t.report (t.sopsHost [ {SERVED} ])")["warnings"] == []


def test_settings_that_units_must_know(nix: Nix) -> None:
    """The agent may write where its metrics go, and finds VMs that microvm.nix keeps elsewhere."""
    report = nix.evaluate(
        sops(
            '{ services.credferry.settings.metrics.textfile = "/var/lib/exporter/credferry.prom";'
            ' microvm.stateDir = "/srv/vms"; }'
        )
    )
    assert report["failed"] == []
    assert report["services"]["credferry"]["serviceConfig"] == {"ReadWritePaths": ["-/var/lib/exporter"]}
    assert "d /var/lib/exporter :0755 :root :root - -" in report["tmpfiles"]
    assert "L /var/lib/microvms - - - - /srv/vms" in report["tmpfiles"]
    report = nix.evaluate(
        sops('{ services.credferry.settings.metrics.textfile = "/run/credferry/credferry.prom"; }')
    )
    assert report["services"]["credferry"]["serviceConfig"] == {}
    assert len(report["tmpfiles"]) == 1


def test_every_setting_reaches_the_agent(nix: Nix) -> None:
    """Each option has its key in the agent's configuration; keys without an option of their own pass too."""
    report = nix.evaluate(
        """
        t.report (t.sopsHost [ {
          sops.secrets."db/password" = { };
          services.credferry.enable = true;
          services.credferry.settings = {
            source.quiet_seconds = 2;
            rollout.attempts = 3;
            host_key = "/k";
          };
          services.credferry.vms.web = {
            unit = "guest.service";
            channel = "command";
            guestSystemd = 255;
            guestKey = true;
            plaintextInArgv = true;
            allowNames = [ "ssh.listen" ];
            pairs = [ [ "A" "ssh.listen" ] ];
            live = true;
            credentials.A = {
              secret = "db/password"; required = false; seal = false; live = false;
              field = "a.b"; format = "yaml"; trim = true; maxAgeDays = 90;
            };
            credentials."ssh.listen".text = "x";
          };
        } ])
        """
    )
    assert report["failed"] == []
    config = config_of(report)
    assert (config.source.quiet_seconds, config.rollout.attempts, config.host_key) == (2, 3, "/k")
    vm = config.vm("web")
    assert (vm.unit, vm.channel, vm.guest_systemd) == ("guest.service", Channel.COMMAND, 255)
    assert vm.pairs == (("A", "ssh.listen"),)
    assert (vm.guest_key, vm.plaintext_in_argv, vm.allow_names) == (True, True, ("ssh.listen",))
    assert (vm.live, vm.credentials["A"].live, vm.credentials["ssh.listen"].live) == (True, False, True)
    credential = vm.credentials["A"]
    assert (credential.secret, credential.required, credential.seal) == ("db/password", False, False)
    assert (credential.field, credential.format, credential.trim) == ("a.b", Format.YAML, True)
    assert credential.max_age_days == 90


def test_a_tpm(nix: Nix) -> None:
    """With a seal_key that needs a TPM, the agent's units may use its device, and its group exists."""
    text = (CHECKOUT / "contrib/systemd/credferry-tpm.conf").read_text()
    wanted = dict(re.findall("^(?!#)(.+?)=(.*)$", text, re.MULTILINE))
    assert wanted["DeviceAllow"] == "char-tpm rw"
    report = nix.evaluate(sops('{ services.credferry.settings.seal_key = "host+tpm2"; }'))
    assert report["failed"] == []
    assert report["tpm"]
    for unit in ("credferry", "credferry-seal", "credferry-seal@"):
        assert report["services"][unit]["serviceConfig"] == wanted
    assert not nix.evaluate(sops('{ services.credferry.settings.seal_key = "host"; }'))["tpm"]


def test_unprivileged(nix: Nix) -> None:
    """The agent as a user of its own: both units have contrib's drop-in, polkit a rule, the host a key."""
    report = nix.evaluate(sops("{ services.credferry.unprivileged = true; }"))
    assert report["failed"] == []
    text = (CHECKOUT / "contrib/systemd/credferry-user.conf").read_text()
    wanted = {
        "User": "credferry",
        "AmbientCapabilities": "CAP_DAC_READ_SEARCH",
        "ReadWritePaths": ["", "/var/lib/credferry"],
    }
    assert re.findall("^(?!#)(.+?)=(.*)$", text, re.MULTILINE) == [
        (key, value)
        for key, values in wanted.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    for unit in ("credferry", "credferry-seal", "credferry-seal@"):
        service = report["services"][unit]
        assert service["serviceConfig"] == wanted
        assert "credferry-key.service" in service["requires"]
        assert "credferry-key.service" in service["after"]
    key = report["services"]["credferry-key"]
    assert key["unitConfig"]["ConditionPathExists"] == "!/var/lib/systemd/credential.secret"
    assert key["serviceConfig"]["ExecStart"].endswith("/bin/systemd-creds setup")
    assert report["users"]["credferry"]["isSystemUser"]
    assert report["polkit"]
    rule = report["etc"]["polkit-1/rules.d/50-credferry.rules"]
    assert re.search("/bin/credferry polkit-rule --user credferry --config /nix/store/[^ ]+ >\\$out", rule)


def test_root_unless_asked(nix: Nix) -> None:
    """Without the option there is no user, no rule and no drop-in."""
    report = nix.evaluate(sops())
    assert (report["users"], report["polkit"]) == ({}, False)
    assert not [name for name in report["etc"] if "polkit" in name]
    assert report["services"]["credferry"]["serviceConfig"] == {}


def test_vm_that_is_not_declared_here(nix: Nix) -> None:
    """A VM that was made otherwise gets the careful budget, and a switch of the host does not restart it."""
    report = nix.evaluate(f"t.report (t.sopsHost [ {SERVED} ])")
    assert report["failed"] == []
    assert config_of(report).vm("test-vm").guest_systemd == 252
    assert report["services"]["microvm@test-vm"]["restartIfChanged"] is False


def test_a_plain_service(nix: Nix) -> None:
    """A service that reads its credentials itself gets the drop-in for units without a launcher."""
    unit = '{ unit = "billing.service"; channel = "directory"; credentials.A.text = "a"; }'
    service = f"{{ services.credferry = {{ enable = true; vms.billing = {unit}; }}; }}"
    report = nix.evaluate(f"t.report (t.sopsHost [ {service} ])")
    assert report["failed"] == []
    assert config_of(report).vm("billing").channel is Channel.DIRECTORY
    settings = report["services"]["billing"]["serviceConfig"]
    assert settings["LoadCredentialEncrypted"] == "credferry:/var/lib/credferry/vms/billing/current"
    assert "RuntimeDirectory" not in settings
    assert "%N" not in str(report["services"]["billing"])


def test_restarts_of_a_declared_vm_are_microvms_matter(nix: Nix) -> None:
    """For a VM that is declared on the host, microvm.vms.NAME.restartIfChanged is left alone."""
    assert nix.evaluate(sops())["services"]["microvm@test-vm"]["restartIfChanged"] is True


@pytest.mark.parametrize("way", ["flake.nixosConfigurations.web", "evaluatedConfig"])
def test_guest_of_a_flake(nix: Nix, way: str) -> None:
    """What a VM asks for is found wherever its configuration is written."""
    report = nix.evaluate(
        f"""
        let
          guest = {{
            imports = [ t.guestModule ];
            microvm.hypervisor = "cloud-hypervisor";
            microvm.cloud-hypervisor.oemSecretsFiles.K = "/run/secrets/k";
          }};
          evaluated = (t.sopsHost [ {{ microvm.vms.web.config = guest; }} ]).config.microvm.vms.web.config;
        in
        t.report (t.sopsHost [ {{
          services.credferry.enable = true;
          sops.secrets.k = {{ }};
          microvm.vms.web.{way} = evaluated;
        }} ])
        """
    )
    assert report["failed"] == []
    assert config_of(report).vm("web").credentials["K"].secret == "k"


def test_agenix(nix: Nix) -> None:
    """Where agenix is the only producer, its directory is the source; a secret elsewhere is none of it."""
    host = (
        't.report (t.host [ t.producers.age { age.secrets.k.file = "/k.age";'
        ' age.secrets.other = { file = "/o.age"; path = "/etc/other"; symlink = false; };'
        " services.credferry = { enable = true; vms.web.credentials.K.secret = "
    )
    report = nix.evaluate(host + '"k"; }; } ])')
    assert report["failed"] == []
    assert config_of(report).source.path == "/run/agenix"
    [message] = nix.evaluate(host + '"other"; }; } ])')["failed"]
    assert "publishes /run/agenix/other" in message


def test_paths_of_other_producers_become_sources(nix: Nix) -> None:
    """Certificates, secrets for users, and files below declared sources: each is a secret of its source."""
    module = f"""{{
      imports = [ t.producers.acme ];
      security.acme.certs."*.example.org" = {{ }};
      sops.secrets.pw.neededForUsers = true;
      sops.templates.env.content = "x";
      services.credferry.settings.sources.vault.path = "/run/vault";
      {GUEST}.microvm.cloud-hypervisor.oemSecretsFiles = {{
        KEY = "/var/lib/acme/*.example.org/key.pem";
        PW = "/run/secrets-for-users/pw";
        ENV = "/run/secrets/rendered/env";
        DB = "/run/vault/db/password";
      }};
    }}"""
    report = nix.evaluate(sops(module))
    assert report["failed"] == []
    config = config_of(report)
    found = {
        name: (config.source_of(each.source).path, each.secret)
        for name, each in config.vm("test-vm").credentials.items()
        if name in {"KEY", "PW", "ENV", "DB"}
    }
    assert found == {
        "KEY": ("/var/lib/acme/*.example.org", "key.pem"),
        "PW": ("/run/secrets-for-users", "pw"),
        "ENV": ("/run/secrets", "rendered/env"),
        "DB": ("/run/vault", "db/password"),
    }
    assert set(config.sources) == {"acme-_.example.org", "secrets-for-users", "vault"}


def test_other_producers_are_believed(nix: Nix) -> None:
    """Without sops-nix and agenix, nothing is known of what will be published."""
    assert (
        nix.evaluate(
            "t.report (t.host [ { services.credferry = { enable = true;"
            ' vms.web.credentials.K.secret = "anything"; }; } ])'
        )["failed"]
        == []
    )


def test_disabled(nix: Nix) -> None:
    """Importing the module alone changes nothing."""
    report = nix.evaluate("t.report (t.sopsHost [ ])")
    assert (report["failed"], report["units"], set(report["services"])) == ([], [], {"microvm@"})


REFUSED = {
    "unknown secret": (
        f'{{ {VM}.credentials.B.secret = "api-kye"; }}',
        [f"{VM}.credentials.B", "publishes /run/secrets/api-kye", "are: api-key"],
    ),
    "secret for users": (
        f'{{ sops.secrets.pw.neededForUsers = true; {VM}.credentials.B.secret = "pw"; }}',
        ["publishes /run/secrets/pw"],
    ),
    "file elsewhere": (
        f'{{ {GUEST}.microvm.cloud-hypervisor.oemSecretsFiles.B = "/etc/b"; }}',
        [f"{VM}.credentials.B", "/etc/b is not below", "/run/secrets"],
    ),
    "unknown source": (
        f'{{ {VM}.credentials.B = {{ secret = "b"; source = "vault"; }}; }}',
        [f"{VM}.credentials.B", "no source vault", "settings.sources.vault.path"],
    ),
    "unknown secret for users": (
        (
            f'{{ sops.secrets.other.neededForUsers = true; {VM}.credentials.B = {{ secret = "pw";'
            ' source = "secrets-for-users"; }; }'
        ),
        [f"{VM}.credentials.B", "publishes /run/secrets-for-users/pw"],
    ),
    "neither secret nor text": (f"{{ {VM}.credentials.B = {{ }}; }}", ["expected either secret or text"]),
    "both secret and text": (
        f'{{ {VM}.credentials.API_KEY.text = "x"; }}',
        [f"{VM}.credentials.API_KEY", "expected either secret or text"],
    ),
    "no credentials": (
        "{ services.credferry.vms.web = { }; }",
        ["services.credferry.vms.web: has no credentials"],
    ),
    "restartUnits": (
        '{ sops.secrets.api-key.restartUnits = [ "microvm@test-vm.service" ]; }',
        [VM, "restarts microvm@test-vm.service as well", "of: api-key"],
    ),
    "restartUnits without a suffix": (
        '{ sops.secrets.other.restartUnits = [ "microvm@test-vm" ]; }',
        ["restartUnits", "of: other"],
    ),
    "restartUnits of a unit that takes the VM along": (
        '{ sops.secrets.api-key.restartUnits = [ "microvm-virtiofsd@test-vm.service" ]; }',
        ["restartUnits", "of: api-key"],
    ),
    "restartUnits of a template": (
        '{ sops.templates.env.restartUnits = [ "microvm@test-vm.service" ]; }',
        ["of: env"],
    ),
    "a path unit": (
        '{ systemd.paths.watch-secrets.pathConfig.Unit = "microvm@test-vm.service"; }',
        ["restarted by systemd.paths as well: watch-secrets"],
    ),
    "a path unit by its name": (
        '{ systemd.paths."microvm@test-vm".pathConfig.PathChanged = "/run/secrets"; }',
        ["systemd.paths as well"],
    ),
    "restartTriggers": (
        '{ systemd.services."microvm@test-vm".restartTriggers = [ "/etc/secrets.yaml" ]; }',
        ["restartTriggers of microvm@test-vm.service"],
    ),
    "restartTriggers by a copy in the store": (
        '{ systemd.services."microvm@test-vm".restartTriggers = [ "${builtins.storeDir}/-secrets.yaml" ]; }',
        ["restartTriggers of microvm@test-vm.service"],
    ),
    "the command channel with plain values": (
        f'{{ {VM}.channel = "command"; }}',
        [f"{VM}.credentials.API_KEY", "/proc/PID/cmdline", "guestKey = true"],
    ),
    "a name that gives power over the guest": (
        f'{{ {VM}.credentials."tty.serial.hvc0.agetty.autologin".text = "root"; }}',
        [f"{VM}.credentials.tty.serial.hvc0.agetty.autologin", "power over the guest", "allowNames"],
    ),
    "sealed without a key": (f"{{ {VM}.credentials.API_KEY.seal = true; }}", ["set guestKey = true"]),
    "a text over an old guest's budget": (
        f"{{ {VM} = {{ guestSystemd = 256; credentials.BIG.text = {BIG}; }}; }}",
        [VM, "a guest with systemd 256", "reads 4091", "run systemd 257"],
    ),
    "static strings over an old guest's budget": (
        f"{{ {VM}.guestSystemd = 252; {GUEST}.microvm.cloud-hypervisor.platformOEMStrings = [ ({BIG}) ]; }}",
        ["5061 of them by", "platformOEMStrings and the notify socket", "reads 4091"],
    ),
    "the table's size": (
        f'{{ {VM}.credentials.BIG.text = builtins.concatStringsSep "" (builtins.genList (_: {BIG}) 10); }}',
        ["a guest with systemd 257", "reads 65398. Remove some.\n"],
    ),
    "too many strings": (
        f"{{ {GUEST}.microvm.cloud-hypervisor.platformOEMStrings = builtins.genList toString 252; }}",
        ["256 OEM strings are more than the 255"],
    ),
    **{
        f"a confidential guest: {words}": (
            f"{{ {GUEST}.microvm.cloud-hypervisor.extraArgs = [ {words} ]; }}",
            [VM, "makes the guest confidential", "settings.initrd = true"],
        )
        for words in (
            '"--platform" "tdx=on"',
            '"--platform" "uuid=a,sev_snp=true,iommu_segments=1"',
            '"--platform=tdx=on"',
            '"--igvm" "/g"',
            '"--igvm=/g"',
        )
    },
    **{
        f"arguments that the launcher refuses: {words}": (
            f"{{ {GUEST}.microvm.cloud-hypervisor.extraArgs = [ {words} ]; }}",
            [VM, "the launcher refuses to start the VM with", "guestKey = true"],
        )
        for words in ('"-v"', '"-vv"', '"--dbus-service-name" "a.b"', '"--gpu" "x"', '"--gpu=x"')
    },
    "graphics in the api channel": (
        f"{{ {GUEST}.microvm.graphics.enable = true; }}",
        [VM, "microvm.graphics.enable", 'channel = "command"'],
    ),
    "a text in a confidential guest's initrd": (
        f"{{ {GUEST} = {{ {TDX} }}; {VM} = {{ guestKey = true; settings.initrd = true; }}; }}",
        ["makes the guest confidential"],
    ),
    "a hypervisor that is not wrapped": (
        f'{{ {WEB} microvm.vms.web.config.microvm.hypervisor = "cloud-hypervisor"; }}',
        ["services.credferry.vms.web", "not started by credferry-launch", "guest module"],
    ),
    "a VM that asks for nothing and could not start": (
        f"{{ microvm.vms.web.config = {{ {WRAPPED} }}; }}",
        ["microvm.vms.web", "gets none on this host", "services.credferry.vms.web.credentials"],
    ),
    "a state directory that the units do not know": (
        '{ services.credferry.settings.state_directory = "/srv/credferry"; }',
        ["settings.state_directory", "mount that at /var/lib/credferry"],
    ),
    "microvm.nix's own credentials": (
        f'{{ {GUEST}.microvm.credentialFiles.X = "/x"; }}',
        [VM, "microvm.credentialFiles", "oemSecretsFiles in the VM instead"],
    ),
    "a VM of qemu": (
        f"{{ {WEB} microvm.vms.web.config.microvm.vcpu = 1; }}",
        ["services.credferry.vms.web", 'microvm.hypervisor = "cloud-hypervisor"'],
    ),
    "a key that nothing is sealed with": (
        f"{{ {GUEST}.credferry.guestKey.enable = true; {VM}.guestKey = false; }}",
        [f"{VM}.guestKey", "nothing is sealed with it"],
    ),
    "the key of another VM": (
        f'{{ {GUEST}.credferry.guestKey = {{ enable = true; vm = "other"; }}; }}',
        [VM, 'Set credferry.guestKey.vm = "test-vm" in the VM'],
    ),
    "a machine id without a share": (
        f'{{ {VM} = {{ guestKey = true; guestMachineId = "{"1" * 32}"; }}; }}',
        [f"{VM}.guestMachineId", "Set credferry.guestKey.enable = true in the VM"],
    ),
    "live without a vsock": (
        f"{{ {VM}.live = true; {GUEST}.microvm.vsock.cid = t.lib.mkForce null; }}",
        [f"{VM}.live", "Set microvm.vsock.cid"],
    ),
    "live in the initrd's channel": (
        f"{{ {VM} = {{ live = true; guestKey = true; settings.initrd = true; }}; }}",
        [f"{VM}.live", "guest's initrd"],
    ),
    "live with a manifest that everybody could read": (
        f'{{ {VM} = {{ live = true; channel = "command"; }}; }}',
        [f"{VM}.live", "would show the guest's manifest"],
    ),
    "live over an old guest's budget": (
        f"{{ {VM} = {{ guestSystemd = 252; {FILLED} live = true; }}; }}",
        [VM, "reads 4091"],
    ),
    "live with too many strings": (
        f"{{ {VM}.live = true; {STRINGS} = builtins.genList toString 251; }}",
        ["256 OEM strings"],
    ),
    "the initrd's channel, and a system that imports": (
        f"{{ {VM}.settings.initrd = true; }}",
        ["credferry.importInInitrd = true"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(nix: Nix, case: str) -> None:
    """What cannot work is an assertion that names the option, the reason and the way out."""
    module, wanted = REFUSED[case]
    messages = nix.evaluate(f"({sops(module)}).failed")
    assert any(all(part in message for part in wanted) for message in messages), messages


ACCEPTED = {
    "a talkative hypervisor with sealed values": (
        f'{{ {GUEST}.microvm.cloud-hypervisor.extraArgs = [ "-v" "--dbus-service-name" "a.b" ]; '
        f"{VM}.guestKey = true; }}"
    ),
    "graphics in the command channel": (
        f'{{ {GUEST}.microvm.graphics.enable = true; {VM} = {{ guestKey = true; channel = "command"; }}; }}'
    ),
    "another VM's restartUnits": '{ sops.secrets.api-key.restartUnits = [ "microvm@test-vm2" "nginx" ]; }',
    "a template": f'{{ sops.templates.env.content = "x"; {VM}.credentials.E.secret = "rendered/env"; }}',
    "a secret that is linked elsewhere": '{ sops.secrets.api-key.path = "/etc/api-key"; }',
    "the command channel with sealed values": f'{{ {VM} = {{ channel = "command"; guestKey = true; }}; }}',
    "the command channel where allowed": f'{{ {VM} = {{ channel = "command"; plaintextInArgv = true; }}; }}',
    "a confidential guest with everything in its initrd": (
        f"{{ {GUEST} = {{ {TDX} }}; "
        f'{VM} = {{ guestKey = true; channel = "command"; settings.initrd = true; '
        "credentials.CLUSTER.seal = true; credentials.ENVIRONMENT.seal = true; }; }"
    ),
    "a guest that could be confidential": (
        f'{{ {GUEST}.microvm.cloud-hypervisor.extraArgs = [ "--platform" "tdx=off,uuid=b" ]; }}'
    ),
    "a powerful name that is allowed": (
        f'{{ {VM} = {{ allowNames = [ "login.noauth" ]; credentials."login.noauth".text = "yes"; }}; }}'
    ),
    "a name of the system without power": f'{{ {VM}.credentials."login.motd".text = "hi"; }}',
    "an old guest that is within its budget only without live": (
        f"{{ {VM} = {{ guestSystemd = 252; {FILLED} }}; }}"
    ),
    "live with a vsock by an argument": (
        f"{{ {VM}.live = true; {GUEST}.microvm = {{ vsock.cid = t.lib.mkForce null;"
        ' cloud-hypervisor.extraArgs = [ "--vsock" "cid=3,socket=v" ]; }; }'
    ),
    "an old guest within its budget": f"{{ {VM}.guestSystemd = 252; }}",
    "unchecked secrets": f'{{ services.credferry.checkSecrets = false; {VM}.credentials.B.secret = "b"; }}',
    "a VM of QEMU that reads its unit's credentials": (
        '{ microvm.vms.web.config.microvm = { hypervisor = "qemu"; credentialFiles.A = '
        '"/run/credentials/microvm@web.service/credferry_value.A"; }; '
        f'{WEB} services.credferry.vms.web.channel = "directory"; }}'
    ),
    "other path units": '{ systemd.paths.x.pathConfig.PathChanged = "/run/secrets"; }',
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(nix: Nix, case: str) -> None:
    """What is like a mistake and is none passes."""
    assert nix.evaluate(f"({sops(ACCEPTED[case])}).failed") == []


MISTYPED = {
    "an option of a VM": (f"{{ {VM}.credentails = {{ }}; }}", f"`{VM}.credentails' does not exist"),
    "an option of a credential": (
        f'{{ {VM}.credentials.B.sekret = "x"; }}',
        f"`{VM}.credentials.B.sekret' does not exist",
    ),
    "an option of the module": ("{ services.credferry.enabled = true; }", "enabled' does not exist"),
    "an option of the guest": (
        f"{{ {GUEST}.microvm.cloud-hypervisor.oemSecretFiles = {{ }}; }}",
        "oemSecretFiles' does not exist",
    ),
    "a channel": (f'{{ {VM}.channel = "apo"; }}', f"`{VM}.channel' is not of type"),
    "a version": (f'{{ {VM}.guestSystemd = "257"; }}', f"`{VM}.guestSystemd' is not of type"),
    "a unit": (f'{{ {VM}.unit = "microvm@test-vm"; }}', f"`{VM}.unit' is not of type"),
    "a path in the guest": (
        f'{{ {GUEST}.microvm.cloud-hypervisor.oemSecretsFiles.B = "api-key"; }}',
        "oemSecretsFiles.B' is not of type",
    ),
    "a policy": (f'{{ {VM}.policy = "aprove"; }}', f"`{VM}.policy' is not of type"),
    "a unit before": (f'{{ {VM}.units.before = "drain"; }}', f"`{VM}.units.before' is not of type"),
    "a key of units": (f'{{ {VM}.units.on_failure = "a.service"; }}', "units.on_failure' does not exist"),
    "a pause": (
        '{ services.credferry.settings.rollout.pause_seconds = "5 s"; }',
        "settings.rollout.pause_seconds' is not of type",
    ),
    "a policy of all": (
        '{ services.credferry.settings.rollout.policy = "never"; }',
        "settings.rollout.policy' is not of type",
    ),
    "a key of a source": (
        '{ services.credferry.settings.sources.a = { path = "/a"; follow_links = 1; }; }',
        "sources.a.follow_links' is not of type",
    ),
    "a pair": (f'{{ {VM}.pairs = [ "A" ]; }}', f"`{VM}.pairs."),
    "an age": (
        f'{{ {VM}.credentials.B = {{ secret = "b"; maxAgeDays = 0; }}; }}',
        "credentials.B.maxAgeDays' is not of type",
    ),
    "a format": (
        f'{{ {VM}.credentials.B = {{ secret = "b"; format = "toml"; }}; }}',
        "credentials.B.format' is not of type",
    ),
    "a source": ('{ services.credferry.settings.source.path = "secrets"; }', "source.path' is not of type"),
}


@pytest.mark.parametrize("case", MISTYPED)
def test_mistyped(nix: Nix, case: str) -> None:
    """A name or a value that no option has is an error that names the option."""
    module, wanted = MISTYPED[case]
    with pytest.raises(NixError) as caught:
        nix.evaluate(sops(module))
    assert wanted in str(caught.value)


def test_guest_without_an_agent(nix: Nix) -> None:
    """A VM that asks for secrets on a host where the agent is not enabled is refused."""
    [message] = nix.evaluate(f"({sops('{ services.credferry.enable = t.lib.mkForce false; }')}).failed")
    assert "microvm.vms.test-vm" in message
    assert "services.credferry.enable = true" in message
    [message] = nix.evaluate(f"(t.report (t.sopsHost [ {{ {GUEST} = {{ {WRAPPED} }}; }} ])).failed")
    assert "services.credferry.enable = true" in message


NOT_RECURSIVE = """
    boot.initrd.systemd.mounts = t.lib.mkForce [
      { where = "/sysroot/run"; what = "/run"; options = "bind"; }
    ];
"""

GUEST_REFUSED = {
    "a key for no machine": (
        "credferry.guestKey.enable = true; microvm.machineId = null;",
        "leave microvm.machineId at its default",
    ),
    "credentials that an initrd would lose": (
        f'{NOT_RECURSIVE} boot.initrd.availableKernelModules = [ "dmi_sysfs" ];',
        "nixpkgs issue 421388",
    ),
    "a blacklisted module": ('boot.blacklistedKernelModules = [ "dmi_sysfs" ];', "blacklistedKernelModules"),
    "live without a vsock": (
        "credferry.live.enable = true; microvm.vsock.cid = t.lib.mkForce null;",
        "set microvm.vsock.cid",
    ),
    "a hypervisor of the user's": (
        "microvm.cloud-hypervisor.package = t.pkgs.cloud-hypervisor-graphics;",
        "Set credferry.hypervisor to that package",
    ),
    "another hypervisor": ('microvm.hypervisor = t.lib.mkForce "qemu";', "microvm.hypervisor"),
}


@pytest.mark.parametrize("case", GUEST_REFUSED)
def test_guest_refused(nix: Nix, case: str) -> None:
    """A guest that could not read its credentials is refused by an assertion of its own."""
    module, wanted = GUEST_REFUSED[case]
    report = nix.evaluate(sops(f"{{ {GUEST} = {{ {module} }}; }}"))
    [message] = report["guests"]["test-vm"]["failed"]
    assert wanted in message
    assert message.startswith("VM test-vm: "), "it names the VM"


@pytest.mark.parametrize(
    ("module", "modules"),
    [
        ('boot.kernelParams = [ "systemd.set_credential=a:b" ];', ["dmi_sysfs"]),
        ("credferry.importInInitrd = true;", ["dmi_sysfs"]),
        ('boot.kernelParams = [ "systemd.set_credential=a:b" ]; boot.initrd.systemd.enable = false;', []),
        # Without a systemd in it, an initrd imports nothing, whatever modules it has.
        (
            f"""
            {NOT_RECURSIVE}
            boot.initrd.availableKernelModules = [ "dmi_sysfs" ];
            boot.initrd.systemd.enable = false;
            """,
            ["dmi_sysfs"],
        ),
    ],
)
def test_initrd(nix: Nix, module: str, modules: list[str]) -> None:
    """dmi_sysfs is in the initrd where its systemd imports anyhow or is told to, and not otherwise."""
    guest = nix.evaluate(sops(f"{{ {GUEST} = {{ {module} }}; }}"))["guests"]["test-vm"]
    assert guest["failed"] == []
    assert guest["initrdModules"] == modules


def test_live_guest(nix: Nix) -> None:
    """A live guest has the receiver's units and starts its socket; another guest has neither."""
    live = nix.evaluate(sops(f"{{ {GUEST} = {{ credferry.live.enable = true; }}; }}"))
    guest = live["guests"]["test-vm"]
    assert (guest["failed"], guest["sockets"]) == ([], {"credferry-receive": ["sockets.target"]})
    [script] = guest["packages"]
    assert "credferry-receive@.service" in script
    other = nix.evaluate(sops())["guests"]["test-vm"]
    assert (other["sockets"], other["packages"]) == ({}, [])


def test_policy_of_restarts(nix: Nix) -> None:
    """Approval, pauses, and the operator's units around a restart are options, for all VMs and for one."""
    config = config_of(
        nix.evaluate(
            sops(
                """{
                services.credferry.settings.rollout = {
                  policy = "hold";
                  pause_seconds = 2.5;
                  attempts = 3;
                  units = {
                    before = "drain@%i.service"; after = "undrain@%i.service"; on_failure = "page.service";
                    before_fails = "restart"; after_fails = "rollback"; retry_seconds = 60;
                  };
                };
                services.credferry.vms.test-vm = {
                  policy = "approve";
                  units = {
                    before = "a.service"; after = "b.service"; onFailure = "c@%i.service";
                    beforeFails = "wait"; afterFails = "warn"; retrySeconds = 1.5;
                  };
                };
                services.credferry.vms.web.credentials.A.text = "a";
                }"""
            )
        )
    )
    web, vm = config.vm("web"), config.vm("test-vm")
    assert (config.rollout.pause_seconds, config.rollout.attempts) == (2.5, 3)
    assert (web.policy, vm.policy) == (Policy.HOLD, Policy.APPROVE)
    assert web.units == Units(
        before="drain@%i.service",
        after="undrain@%i.service",
        on_failure="page.service",
        before_fails=BeforeFails.RESTART,
        after_fails=AfterFails.ROLLBACK,
        retry_seconds=60,
    )
    assert vm.units == Units(
        before="a.service", after="b.service", on_failure="c@%i.service", retry_seconds=1.5
    )


def test_what_is_not_set_is_not_in_the_file(nix: Nix) -> None:
    """The agent's own defaults apply, and a VM without units of its own has those of all VMs."""
    report = nix.evaluate(sops('{ services.credferry.settings.rollout.units.before = "drain.service"; }'))
    assert report["settings"]["rollout"] == {"units": {"before": "drain.service"}}
    assert report["settings"]["source"] == {"path": "/run/secrets"}
    assert not {"policy", "units"} & report["settings"]["vms"]["test-vm"].keys()
    assert config_of(report).vm("test-vm").units == Units(before="drain.service")


def test_keys_that_have_options_still_pass_through_settings(nix: Nix) -> None:
    """A configuration that was written for an earlier release means the same."""
    vm = config_of(
        nix.evaluate(
            sops(f'{{ {VM}.settings = {{ policy = "approve"; units.before = "drain@%i.service"; }}; }}')
        )
    ).vm("test-vm")
    assert (vm.policy, vm.units.before) == (Policy.APPROVE, "drain@%i.service")


def test_sources_have_typed_keys(nix: Nix) -> None:
    """Of the default source and of each further one."""
    config = config_of(
        nix.evaluate(
            sops(
                """{ services.credferry.settings = {
                  source = { quiet_seconds = 0.5; resync_seconds = 30; };
                  sources.acme = { path = "/a"; follow_links = true; quiet_max_seconds = 2; };
                }; }"""
            )
        )
    )
    assert (config.source.quiet_seconds, config.source.resync_seconds) == (0.5, 30)
    acme = config.sources["acme"]
    assert (acme.path, acme.follow_links, acme.quiet_max_seconds) == ("/a", True, 2)
    assert acme.quiet_seconds == SourceConfig().quiet_seconds


def test_a_guest_that_gets_its_key_from_the_host(nix: Nix) -> None:
    """One line in the VM seals for it. The host knows its machine id, and root alone reaches the share."""
    report = nix.evaluate(sops(f"{{ {GUEST}.credferry.guestKey.enable = true; }}"))
    guest = report["guests"]["test-vm"]
    assert (report["failed"], guest["failed"]) == ([], [])
    vm = config_of(report).vm("test-vm")
    assert (vm.guest_key, vm.guest_machine_id) == (True, "5ea1ed00-c0ff-ee00-c0ff-ee0000000252")
    assert vm.kind("API_KEY") is Kind.SEALED
    source = "/run/credferry-guest-keys/test-vm"
    assert guest["shares"] == [
        {
            "tag": "credferry-key",
            "source": source,
            "mountPoint": "/run/credferry-key",
            "proto": "virtiofs",
            "readOnly": True,
        }
    ]
    assert guest["keyWantedBy"] == ["sysinit.target"]
    assert "credferry-key.service" in guest["packages"][0]
    assert report["directories"]["10-microvm"][source]["d"] == {
        "user": "root",
        "group": "root",
        "mode": "0700",
    }
    assert "d /run/credferry-guest-keys 0700 root root - -" in report["tmpfiles"]
    served = report["services"]["microvm-virtiofsd@test-vm"]
    assert (served["after"], served["path"]) == (["systemd-tmpfiles-resetup.service"], [])
    plain = nix.evaluate(sops())
    assert plain["guests"]["test-vm"]["shares"] == []
    assert "credferry-guest-keys" not in str(plain["tmpfiles"])


def test_live_host(nix: Nix) -> None:
    """The host's VM is live where its guest is, and its push runs as the user of the VM's unit."""
    live = f"{GUEST}.credferry.live.enable = true;"
    report = nix.evaluate(sops(f"{{ {live} }}"))
    assert report["failed"] == []
    assert config_of(report).vm("test-vm").live
    push = report["services"]["credferry-push@test-vm"]
    assert (push["overrideStrategy"], push["after"]) == ("asDropin", ["microvm@test-vm.service"])
    assert (push["serviceConfig"]["User"], push["serviceConfig"]["Group"]) == ("microvm", "kvm")
    assert "ExecStart" not in push["serviceConfig"], "the template's commands are right"
    for off in ("", f"{live} {VM}.live = false;"):
        report = nix.evaluate(sops(f"{{ {off} }}"))
        assert not config_of(report).vm("test-vm").live
        assert "credferry-push@test-vm" not in report["services"]


@pytest.mark.parametrize(
    ("unit", "user", "group"),
    [
        ('"microvm@test-vm".serviceConfig.User = "one";', "one", "kvm"),
        ('guest.serviceConfig = { ExecStart = "/g"; User = "two"; };', "two", ""),
        ('guest.serviceConfig.ExecStart = "/g";', "", ""),
        ("", None, None),
    ],
)
def test_push_follows_the_unit(nix: Nix, unit: str, user: str | None, group: str | None) -> None:
    """A push has the user and group of the VM's unit, also of one with a name of its own."""
    name = "microvm@test-vm" if "microvm@" in unit else "guest"
    report = nix.evaluate(
        sops(f'{{ systemd.services = {{ {unit} }}; {VM} = {{ live = true; unit = "{name}.service"; }}; }}')
    )
    assert report["failed"] == []
    push = report["services"]["credferry-push@test-vm"]
    assert (push["serviceConfig"].get("User"), push["serviceConfig"].get("Group")) == (user, group)
    if name == "guest":
        empty, send, *prove = push["serviceConfig"]["ExecStart"]
        assert not empty
        assert send.endswith("/bin/credferry-launch --push --vm %i --unit guest.service")
        assert [command.rpartition(" ")[2] for command in prove] == ["/run/credferry-pushed/%i"]


CLAN_VM = (
    "{ microvm.vms.test-vm.config = { imports = [ t.guestModule ]; credferry.enable = true;"
    ' microvm.hypervisor = "cloud-hypervisor"; }; }'
)


def clan(settings: str, *modules: str) -> str:
    """A machine of a clan with one instance of the service."""
    return f't.report (t.clan [ {{ vm = "test-vm"; {settings} }} ] [ {CLAN_VM} {" ".join(modules)} ])'


def test_clan(nix: Nix) -> None:
    """A generated secret becomes a clan var and a credential; strings become texts where they can."""
    report = nix.evaluate(
        clan(
            'runtimeSecrets = { api-key = { oemCredentialName = "API_KEY"; generateSecret = true; };'
            ' OTHER.secretPath = "/run/secrets/other"; };'
            ' staticOEMStrings = [ "io.systemd.credential:ENVIRONMENT=a=b,c" "io.example:x" ];',
            "{ sops.secrets.other = { }; }",
        )
    )
    assert report["failed"] == []
    assert report["generators"] == {"credferry-test-vm-api-key": ["value"]}
    credentials = config_of(report).vm("test-vm").credentials
    assert (
        credentials["API_KEY"].secret == "vars/per-machine/britton-desktop/credferry-test-vm-api-key/value"
    )
    assert credentials["OTHER"].secret == "other"
    assert credentials["ENVIRONMENT"].text == "a=b,c"
    assert report["guests"]["test-vm"]["platformOEMStrings"] == ["io.example:x"]


def test_clan_example(nix: Nix) -> None:
    """The example's inventory says what the service takes."""
    report = nix.evaluate(
        f"""
        let
          example = import (t.root + "/contrib/examples/britton-desktop/clan.nix");
          inherit (example.inventory.instances.test-vm-secrets.roles.host.machines) britton-desktop;
        in
        t.report (t.clan [ britton-desktop.settings ] [ {CLAN_VM} ])
        """
    )
    assert report["failed"] == []
    assert set(config_of(report).vm("test-vm").credentials) == {"API_KEY", "ENVIRONMENT", "CLUSTER"}


def test_two_instances(nix: Nix) -> None:
    """Each instance serves its VM, and two of one VM add up."""
    report = nix.evaluate(
        """
        t.report (t.clan [
          { vm = "a"; staticOEMStrings = [ "io.systemd.credential:X=1" ]; }
          { vm = "a"; staticOEMStrings = [ "io.systemd.credential:Y=2" ]; }
          { vm = "b"; runtimeSecrets.Z.generateSecret = true; }
        ] [ ])
        """
    )
    assert report["failed"] == []
    assert {name: set(vm.credentials) for name, vm in config_of(report).vms.items()} == {
        "a": {"X", "Y"},
        "b": {"Z"},
    }


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ("runtimeSecrets.a = { };", "expected either secretPath or generateSecret"),
        ('runtimeSecrets.a = { generateSecret = true; secretPath = "/a"; };', "expected either secretPath"),
        ('runtimeSecrets.A.secretPath = "/run/secrets/gone";', "publishes /run/secrets/gone"),
        (
            'runtimeSecrets.A.generateSecret = true; staticOEMStrings = [ "io.systemd.credential:A=x" ];',
            "same credential name",
        ),
    ],
)
def test_clan_refused(nix: Nix, settings: str, wanted: str) -> None:
    """What the service cannot give is an assertion that names the secret."""
    messages = nix.evaluate(f"({clan(settings)}).failed")
    assert any(wanted in message for message in messages), messages


def test_clan_var_that_restarts_the_vm(nix: Nix) -> None:
    """A var's restartUnits reach sops-nix, and would restart the VM a second time."""
    messages = nix.evaluate(f"({clan('runtimeSecrets.A.generateSecret = true;', RESTARTED)}).failed")
    assert any("sops-nix restarts microvm@test-vm.service" in message for message in messages)


RESTARTED = (
    '{ sops.secrets."vars/per-machine/britton-desktop/credferry-test-vm-A/value".restartUnits'
    ' = [ "microvm@test-vm.service" ]; }'
)
