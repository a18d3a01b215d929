# SPDX-License-Identifier: MIT
#
# The VM. It needs credferry's guest module.
{
  system.stateVersion = "26.05";

  microvm = {
    hypervisor = "cloud-hypervisor";
    vcpu = 2;
    mem = 1024;
    vsock.cid = 3; # a restart succeeds only when the guest reports that it is up
    cloud-hypervisor.oemSecretsFiles.API_KEY = "/run/secrets/api-key";
  };

  # A service takes its credentials as usual. It asserts those without which it must not start.
  systemd.services.demo-oem-credentials = {
    wantedBy = [ "multi-user.target" ];
    unitConfig.AssertCredential = [
      "API_KEY"
      "ENVIRONMENT"
      "CLUSTER"
    ];
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
      LoadCredential = [
        "API_KEY"
        "ENVIRONMENT"
        "CLUSTER"
      ];
    };
    script = ''
      echo "ENVIRONMENT=$(cat "$CREDENTIALS_DIRECTORY/ENVIRONMENT") CLUSTER=$(cat "$CREDENTIALS_DIRECTORY/CLUSTER")"
      echo "API_KEY is there, and is not shown"
    '';
  };
}
