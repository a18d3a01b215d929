# SPDX-License-Identifier: MIT
#
# Typed options for what the agent does when secrets change: for all VMs in services.credferry.settings, with the names
# of the configuration file; for one VM in services.credferry.vms.NAME.
{ lib, toml }:
let
  inherit (lib) mkOption types;

  # Null leaves the key out of the file, and so means the agent's own default.
  unset =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };

  serviceName = types.strMatching "[A-Za-z0-9:_.\\-]+(@([A-Za-z0-9:_.@\\-]|%i)+)?[.]service";
  seconds = types.numbers.between 0 86400;
  path = types.strMatching "/.*[^/]";

  policy = unset (types.enum [
    "restart"
    "hold"
    "approve"
    "ignore"
  ]);

  unit =
    description:
    (unset serviceName description)
    // {
      example = "drain@%i.service";
    };
  before = unit "A unit that is started before a restart of a VM that is up. `%i` is the VM's name. The restart waits for its end.";
  after = unit "A unit that is started once the VM is up and healthy again, also after a rollback. `%i` is the VM's name.";
  onFailure = unit "A unit that is started if a restart or push has failed, or is put off. `%i` is the VM's name.";
  beforeFails = unset (types.enum [
    "wait"
    "restart"
  ]) "What the agent does if `before` fails: the VM keeps what it runs (`wait`, the default), or is restarted all the same.";
  afterFails = unset (types.enum [
    "warn"
    "rollback"
  ]) "What a failure of `after` means: a warning (the default), or a rollback, as after a failed health check.";
  retrySeconds = unset (types.numbers.between 1 86400) "How long after a failure of `before` or `after` the unit is started again; 300 by default.";

  quiet_seconds = unset seconds "How long a file that is written in place must have stayed the same; 1 by default.";
in
{
  # Of all VMs that do not say otherwise: a part of services.credferry.settings.rollout.
  all = {
    freeformType = toml.type;
    options = {
      policy = policy "What a change does to VMs that do not say otherwise: see `vms.NAME.policy`.";
      pause_seconds = unset seconds "How long after a VM's restart or push no other VM begins one; 0 by default.";
      units = mkOption {
        type = types.submodule {
          freeformType = toml.type;
          options = {
            inherit before after;
            on_failure = onFailure;
            before_fails = beforeFails;
            after_fails = afterFails;
            retry_seconds = retrySeconds;
          };
        };
        default = { };
        description = "The operator's units around restarts of VMs that have no `units` of their own.";
      };
    };
  };

  # Of one VM.
  one = {
    policy = policy ''
      What a change of the VM's secrets does while it runs: `restart` it (the default); `approve`: wait until an operator
      approves the change with `credferry approve`; `hold`: show that a restart is due; `ignore`: wait for the next start.
      Null means `settings.rollout.policy`.
    '';
    units = mkOption {
      type = types.submodule {
        options = {
          inherit
            before
            after
            onFailure
            beforeFails
            afterFails
            retrySeconds
            ;
        };
      };
      default = { };
      description = ''
        The operator's units around restarts of this VM. If one is set here, none of `settings.rollout.units` applies to the
        VM. The units are yours, of `Type=oneshot` and with a `TimeoutStartSec=`.
      '';
    };
  };

  # The keys of one VM's table. A table without a key would keep settings.rollout.units from the VM.
  keys =
    vm:
    let
      units = lib.filterAttrs (_: value: value != null) {
        inherit (vm.units) before after;
        on_failure = vm.units.onFailure;
        before_fails = vm.units.beforeFails;
        after_fails = vm.units.afterFails;
        retry_seconds = vm.units.retrySeconds;
      };
    in
    lib.optionalAttrs (vm.policy != null) { inherit (vm) policy; } // lib.optionalAttrs (units != { }) { inherit units; };

  # A source: of services.credferry.settings.source and .sources.NAME.
  source = pathOption: {
    freeformType = toml.type;
    options = {
      path = mkOption ({ type = path; } // pathOption);
      follow_links = unset types.bool "Whether a symlink in the source may lead out of it; false by default.";
      inherit quiet_seconds;
      quiet_max_seconds = unset seconds "After this long the source is read even if files are still changing; 10 by default.";
      resync_seconds = unset (types.numbers.between 0.1 86400) "How often the source is read without a hint; 60 by default.";
    };
  };
}
