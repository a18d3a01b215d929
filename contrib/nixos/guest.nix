# SPDX-License-Identifier: MIT
#
# For a VM of microvm.nix: its hypervisor starts through credferry-launch, and its systemd can read what it is given.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    any
    elem
    hasPrefix
    literalExpression
    mkIf
    mkOption
    types
    ;

  cfg = config.credferry;
  inherit (config.microvm) vmHostPackages;
  inherit (config.boot) initrd;

  inInitrd = elem "dmi_sysfs" (initrd.availableKernelModules ++ initrd.kernelModules);
  # nixpkgs mounts /run into the new root before systemd does. If the mount is not recursive, mounts below /run are lost.
  runMounts = lib.filter (mount: (mount.where or "") == "/sysroot/run") (initrd.systemd.mounts or [ ]);
  key = pkgs.callPackage ./guest-key.nix { };
  receiver = pkgs.callPackage ./receiver.nix { };
  losesCredentials = any (mount: !(elem "rbind" (lib.splitString "," mount.options))) runMounts;
in
{
  options = {
    microvm.cloud-hypervisor.oemSecretsFiles = mkOption {
      type = types.attrsOf (types.strMatching "/.*");
      default = { };
      example = {
        API_KEY = "/run/secrets/api-key";
      };
      description = ''
        Credentials for this VM, each with the path of a file on the host that holds its value. The host reads them when
        the VM starts, and again whenever one changes. The Nix store holds none of the values.
      '';
    };

    credferry = {
      enable = mkOption {
        type = types.bool;
        default = config.microvm.cloud-hypervisor.oemSecretsFiles != { };
        defaultText = literalExpression "config.microvm.cloud-hypervisor.oemSecretsFiles != { }";
        description = "Whether credferry on the host gives this VM credentials. Without them, the VM does not start.";
      };

      hypervisor = mkOption {
        type = types.package;
        default =
          if config.microvm.graphics.enable or false then
            vmHostPackages.cloud-hypervisor-graphics
          else
            vmHostPackages.cloud-hypervisor;
        defaultText = literalExpression "the default of microvm.cloud-hypervisor.package";
        description = "The cloud-hypervisor that the launcher starts.";
      };

      importInInitrd = mkOption {
        type = types.bool;
        default =
          initrd.systemd.enable && any (hasPrefix "systemd.set_credential") config.boot.kernelParams;
        defaultText = literalExpression "whether the kernel's command line gives the initrd's systemd a credential";
        description = ''
          Whether the initrd's systemd imports the credentials, instead of the system's. systemd imports only once: if the
          initrd gets any credential, it must get all of them.
        '';
      };

      guestKey = {
        enable = mkOption {
          type = types.bool;
          default = false;
          description = ''
            Whether secrets are sealed for this guest, with a key that the host makes and gives to the guest each time
            the VM starts. Units load them with `LoadCredentialEncrypted = "NAME:/run/credentials/@system/NAME"`. The
            key is for `microvm.machineId`. The host's `services.credferry.vms.NAME.guestKey` is then true by default.
          '';
        };
        vm = mkOption {
          type = types.str;
          default = config.networking.hostName;
          defaultText = literalExpression "config.networking.hostName";
          description = "The VM's name on the host, where it differs from the guest's host name.";
        };
      };

      live.enable = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether the guest takes rotated credentials while it runs. A receiver listens on the VM's vsock, and restarts
          the units that load what changed. It needs microvm.vsock.cid. The host's
          `services.credferry.vms.NAME.live` is then true by default.
        '';
      };
    };
  };

  config = mkIf cfg.enable {
    # The user's own definition has priority over this one. An assertion then says what to set instead.
    microvm.cloud-hypervisor.package = lib.mkOverride 900 (vmHostPackages.callPackage ./wrap.nix {
      launcher = vmHostPackages.callPackage ./launcher.nix { };
    } cfg.hypervisor);

    # In NixOS's kernels dmi_sysfs is a module. systemd does not mean to support that (systemd issue 37391), but PID 1
    # loads the module itself (src/core/kmod-setup.c) and then imports. Without the module it imports nothing and says
    # nothing. With the module named here, systemd-modules-load.service fails and shows that it is missing.
    boot.kernelModules = [ "dmi_sysfs" ];

    # By default the module is not in the initrd. There, the initrd's systemd would import the credentials. If nixpkgs
    # does not mount /run recursively, they are lost at the switch to the new root (nixpkgs issue 421388).
    boot.initrd.availableKernelModules = mkIf cfg.importInInitrd [ "dmi_sysfs" ];

    # Root's directory on the host. It holds the key from the start of the VM's unit until its end.
    microvm.shares = mkIf cfg.guestKey.enable [
      {
        proto = "virtiofs";
        tag = "credferry-key";
        source = "/run/credferry-guest-keys/${cfg.guestKey.vm}";
        mountPoint = "/run/credferry-key";
        readOnly = true;
      }
    ];
    systemd.services.credferry-key = mkIf cfg.guestKey.enable { wantedBy = [ "sysinit.target" ]; };

    # The unit files are those of contrib/guest. A unit with an empty `path` still finds systemd and coreutils.
    systemd.packages = lib.optional cfg.live.enable receiver ++ lib.optional cfg.guestKey.enable key;
    systemd.sockets.credferry-receive = mkIf cfg.live.enable { wantedBy = [ "sockets.target" ]; };
    systemd.services."credferry-receive@" = mkIf cfg.live.enable { path = [ pkgs.util-linux ]; };

    assertions = map (each: each // { message = "VM ${config.networking.hostName}: ${each.message}"; }) [
      {
        assertion = config.microvm.cloud-hypervisor.package ? credferry;
        message = ''
          microvm.cloud-hypervisor.package is set to ${config.microvm.cloud-hypervisor.package.name}, which would start without the launcher and get no credentials.
          Set credferry.hypervisor to that package instead.
        '';
      }
      {
        assertion =
          !cfg.live.enable
          || (config.microvm.vsock.cid or null) != null
          || any (hasPrefix "--vsock") config.microvm.cloud-hypervisor.extraArgs;
        message = ''
          credferry.live.enable needs a vsock, over which the host sends: set microvm.vsock.cid to a number of this VM's own.
        '';
      }
      {
        assertion = !cfg.guestKey.enable || (config.microvm.machineId or null) != null;
        message = ''
          credferry.guestKey.enable needs a machine id, to which the key belongs: leave microvm.machineId at its default, or set it.
        '';
      }
      {
        assertion = config.microvm.hypervisor == "cloud-hypervisor";
        message = ''
          credferry gives credentials to cloud-hypervisor only: set microvm.hypervisor = "cloud-hypervisor".
        '';
      }
      {
        assertion = pkgs.stdenv.hostPlatform.isx86_64;
        message = ''
          credferry needs a x86_64 guest: cloud-hypervisor has SMBIOS on no other.
        '';
      }
      {
        assertion = !(elem "dmi_sysfs" config.boot.blacklistedKernelModules);
        message = ''
          boot.blacklistedKernelModules has dmi_sysfs: the guest's systemd could not read its credentials. Remove it there.
        '';
      }
      {
        assertion = !(initrd.systemd.enable && inInitrd && losesCredentials);
        message = ''
          dmi_sysfs is in the initrd, so that its systemd imports the credentials, and this nixpkgs mounts /sysroot/run
          without "rbind": they would be lost at the switch to the new root (nixpkgs issue 421388). Remove dmi_sysfs from
          boot.initrd, or use a nixpkgs that has the fix (pull request 405687).
        '';
      }
    ];
  };
}
