# SPDX-License-Identifier: MIT
#
# A producer for tests that needs no key: `publish-secrets VALUE`, and the last value again at each boot.
{ pkgs, ... }:
let
  publish = pkgs.writeShellScriptBin "publish-secrets" (builtins.readFile ./publish-secrets);
in
{
  environment.systemPackages = [ publish ];
  systemd.services.publish-secrets = {
    wantedBy = [ "multi-user.target" ];
    before = [
      "credferry-seal.service"
      "credferry.service"
    ];
    path = [ pkgs.coreutils ];
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
      ExecStart = "${publish}/bin/publish-secrets";
    };
  };
}
