# SPDX-License-Identifier: MIT
{
  system.stateVersion = "26.05";

  microvm = {
    hypervisor = "cloud-hypervisor";
    mem = 1024;
    vsock.cid = 3; # a number of this VM's own
    cloud-hypervisor.oemSecretsFiles.API_KEY = "/run/secrets/api-key";
  };

  # A rotated value reaches the running guest, and the VM stays up.
  credferry.live.enable = true;

  systemd.services.my-service = {
    wantedBy = [ "multi-user.target" ];
    serviceConfig.LoadCredential = "API_KEY";
    script = ''
      # The value is in the file "$CREDENTIALS_DIRECTORY/API_KEY".
      sleep infinity
    '';
  };
}
