# SPDX-License-Identifier: MIT
#
# A NixOS test of a host, for pkgs.testers.runNixOSTest: rotation, rollback, a switch that adds a VM, a reboot. Its VMs are
# light: the launcher and the tests' stand-in for cloud-hypervisor, with no guest. So it needs no nested virtualisation.
# wrap: the flake's lib.wrapCloudHypervisor.
{ wrap, hostModule }:
{ lib, pkgs, ... }:
let
  script = import ./script.nix;

  stand-in =
    (pkgs.runCommand "cloud-hypervisor-50.0" { } ''
      mkdir -p $out/bin $out/lib
      cp -r ${../support/hypervisor} $out/lib/hypervisor
      cat >$out/bin/cloud-hypervisor <<EOF
      #!${pkgs.runtimeShell}
      exec ${pkgs.python3.interpreter} -I $out/lib/hypervisor/__main__.py "\$@"
      EOF
      ln -s ${pkgs.coreutils}/bin/true $out/bin/ch-remote
      chmod +x $out/bin/cloud-hypervisor
    '')
    // {
      version = "50.0";
    };
  hypervisor = wrap pkgs stand-in;
  kernel = pkgs.runCommand "kernel" { } ''
    ${pkgs.python3.interpreter} -I -c '
    import runpy
    content = runpy.run_path("${../support/kernel.py}")["kernel"]()
    open("'"$out"'", "wb").write(content)'
  '';

  light = name: {
    services.credferry.vms.${name} = {
      credentials.API_KEY.secret = "api-key";
      credentials.ENVIRONMENT.text = "test";
      settings.health = [
        "${pkgs.coreutils}/bin/test"
        "!"
        "-e"
        "/run/test/unhealthy"
      ];
    };
    systemd.services."microvm@${name}" = {
      overrideStrategy = "asDropin";
      wantedBy = [ "microvms.target" ];
    };
  };
in
{
  name = "credferry";

  nodes.machine =
    { ... }:
    {
      imports = [
        hostModule
        ./producer.nix
        (light "web")
      ];
      virtualisation.memorySize = 2048;
      services.credferry = {
        enable = true;
        settings.source.quiet_seconds = 0.2;
        settings.rollout.attempts = 1;
      };
      services.journald.storage = "persistent";

      users.users.microvm = {
        isSystemUser = true;
        group = "kvm";
      };
      systemd.targets.microvms.wantedBy = [ "multi-user.target" ];
      systemd.services."microvm@" = {
        description = "MicroVM '%i'";
        environment.CREDFERRY_STANDIN_BOOT = "0";
        serviceConfig = {
          User = "microvm";
          Group = "kvm";
          StateDirectory = "microvms/%i";
          WorkingDirectory = "/var/lib/microvms/%i";
          ExecStart = "${hypervisor}/bin/cloud-hypervisor --cpus boot=1 --memory size=64M --kernel ${kernel} --api-socket %i.sock";
          Restart = "always";
          RestartSec = "5s";
        };
      };

      specialisation.added.configuration = light "added";
    };

  testScript = script.steps + script.switch;
}
