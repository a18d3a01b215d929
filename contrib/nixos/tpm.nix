# SPDX-License-Identifier: MIT
#
# services.credferry.settings.seal_key: with a TPM, the agent's units may use its device.
{ config, lib, ... }:
let
  inherit (lib) mkDefault mkIf;

  cfg = config.services.credferry;

  units = import ./units.nix { inherit lib; };
  dropIn = (units.parse (builtins.readFile ../systemd/credferry-tpm.conf)).Service;
  service.serviceConfig = units.simplify dropIn;
in
{
  config = mkIf (cfg.enable && (cfg.settings.seal_key or "host") != "host") {
    # It makes the group that may use the device.
    security.tpm2.enable = mkDefault true;

    systemd.services = {
      credferry = service;
      credferry-seal = service;
      "credferry-seal@" = service;
    };
  };
}
