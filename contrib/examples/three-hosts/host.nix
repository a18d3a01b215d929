# SPDX-License-Identifier: MIT
#
# One of three hosts that each run a member of etcd, and give the same secret to a VM. Of the three VMs, one at a time is
# restarted when the secret rotates, until an operator sets another limit: credferry fleet limit web 2.
#
# flake.nix: nixosConfigurations = builtins.mapAttrs (name: _: nixpkgs.lib.nixosSystem { modules = [
#   (import ./host.nix name) credferry.nixosModules.host microvm.nixosModules.host sops-nix.nixosModules.sops ]; })
#   { h1 = null; h2 = null; h3 = null; };
name:
let
  hosts = {
    h1 = "192.0.2.1";
    h2 = "192.0.2.2";
    h3 = "192.0.2.3";
  };
  url = port: host: "https://${hosts.${host}}:${toString port}";
  # Of an authority that signs for these hosts alone. The clients' certificates have no CommonName.
  keys = "/var/lib/etcd-pki";
in
{
  networking.hostName = name;
  networking.firewall.allowedTCPPorts = [
    2379
    2380
  ];

  services.etcd = {
    enable = true;
    inherit name;
    listenClientUrls = [ (url 2379 name) ];
    listenPeerUrls = [ (url 2380 name) ];
    advertiseClientUrls = [ (url 2379 name) ];
    initialAdvertisePeerUrls = [ (url 2380 name) ];
    initialCluster = map (host: "${host}=${url 2380 host}") (builtins.attrNames hosts);
    certFile = "${keys}/server.pem";
    keyFile = "${keys}/server.key";
    trustedCaFile = "${keys}/ca.pem";
    clientCertAuth = true;
    peerCertFile = "${keys}/peer.pem";
    peerKeyFile = "${keys}/peer.key";
    peerTrustedCaFile = "${keys}/ca.pem";
    peerClientCertAuth = true;
    # Without it, etcd keeps each change for ever, and is full one day.
    extraConf = {
      AUTO_COMPACTION_RETENTION = "1";
    };
  };

  sops.secrets.api-key = { };
  services.credferry = {
    enable = true;
    fleet = {
      endpoints = map (url 2379) (builtins.attrNames hosts);
      group = "web";
      ca = "${keys}/ca.pem";
      certificateFile = "${keys}/client.pem";
      keyFile = "${keys}/client.key";
    };
    vms.web.credentials.API_KEY.secret = "api-key";
  };
}
