# SPDX-License-Identifier: MIT
#
# services.credferry.fleet: slots of a fleet, and what the agent's unit needs to ask for them.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkIf mkOption types;

  cfg = config.services.credferry;
  inherit (cfg) fleet;

  units = import ./units.nix { inherit lib; };
  dropIn = (units.parse (builtins.readFile ../systemd/credferry-fleet.conf)).Service;

  # The agent reads its files where systemd puts them for its unit alone.
  files = lib.filterAttrs (_: file: file != null) {
    "fleet.certificate" = fleet.certificateFile;
    "fleet.key" = fleet.keyFile;
    "fleet.password" = fleet.passwordFile;
  };
  named = file: name: if file == null then null else name;

  # Addresses that stand in URLs, as https://192.0.2.1:2379 or https://[2001:db8::1]:2379.
  literal =
    url:
    let
      four = builtins.match "https?://([0-9.]+)(:[0-9]+)?/?.*" url;
      six = builtins.match "https?://[[]([0-9a-fA-F:.]+)[]](:[0-9]+)?/?.*" url;
    in
    if four != null then
      [ (builtins.head four) ]
    else if six != null then
      [ (builtins.head six) ]
    else
      [ ];
  urls = fleet.endpoints ++ lib.optional (fleet.fleetlock != null) fleet.fleetlock;
  unnamed = lib.filter (url: literal url == [ ]) urls;

  file = what: {
    type = types.nullOr (types.strMatching "/.*");
    default = null;
    description = "${what} PID 1 reads it for the agent, so root alone needs to be able to read it.";
  };

  settings = {
    options = {
      endpoints = mkOption {
        type = types.listOf (types.strMatching "https?://.+");
        default = [ ];
        example = [
          "https://192.0.2.1:2379"
          "https://192.0.2.2:2379"
          "https://192.0.2.3:2379"
        ];
        description = "URLs of the members of one etcd cluster.";
      };
      fleetlock = mkOption {
        type = types.nullOr (types.strMatching "https?://.+");
        default = null;
        description = "Instead of `endpoints`: the URL of a FleetLock server.";
      };
      group = mkOption {
        type = types.strMatching "[A-Za-z0-9.-]{1,64}";
        default = "default";
        description = "The group of this host's VMs. `vms.NAME.fleetGroup` sets another one.";
      };
      host = mkOption {
        type = types.nullOr (types.strMatching "[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}");
        default = null;
        defaultText = lib.literalExpression "the host name";
        description = "The name of this host in the fleet. Each host needs its own.";
      };
      ca = mkOption {
        type = types.strMatching "/.*";
        default = "/etc/ssl/certs/ca-certificates.crt";
        description = "The file with the certificates that may sign those of the servers. The agent reads it itself.";
      };
      certificateFile = mkOption (file "The client's certificate.");
      keyFile = mkOption (file "The key of the client's certificate.");
      user = mkOption {
        type = types.nullOr (types.strMatching ".{1,256}");
        default = null;
        description = "A user of etcd.";
      };
      passwordFile = mkOption (file "The user's password, on one line.");
      staleSeconds = mkOption {
        type = types.numbers.between 0 2592000;
        default = 0;
        description = ''
          After how long a VM that waits takes away a slot that nobody has given back; 0 for never. Choose much more than the
          longest restart with its health check.
        '';
      };
      timeoutSeconds = mkOption {
        type = types.numbers.between 0.1 60;
        default = 5;
        description = "How long one request may take.";
      };
      addresses = mkOption {
        type = types.listOf types.str;
        default = lib.concatMap literal urls;
        defaultText = lib.literalExpression "the addresses in endpoints and fleetlock";
        example = [
          "192.0.2.0/24"
          "2001:db8::/32"
        ];
        description = ''
          The addresses to which the agent may send, besides localhost: the servers, and where URLs have names, the DNS
          server if that is not systemd-resolved.
        '';
      };
    };
  };
in
{
  options.services.credferry.fleet = mkOption {
    type = types.nullOr (types.submodule settings);
    default = null;
    example = lib.literalExpression ''{ endpoints = [ "https://192.0.2.1:2379" ]; group = "web"; }'';
    description = ''
      For hosts that get the same secrets: no more than N VMs of a group are down for a change at a time, over all hosts.
      The agent's unit gets a network for this alone. See docs/how-to/roll-through-a-fleet.md.
    '';
  };

  config = mkIf (cfg.enable && fleet != null) {
    assertions = [
      {
        assertion = (fleet.endpoints == [ ]) == (fleet.fleetlock != null);
        message = "services.credferry.fleet: set either endpoints or fleetlock.";
      }
      {
        assertion = unnamed == [ ] || fleet.addresses != [ ];
        message = ''
          services.credferry.fleet.addresses: ${lib.concatStringsSep ", " unnamed} is a name, and the agent may send to
          addresses that are listed only. List those of the servers.
        '';
      }
    ];

    services.credferry.settings.fleet = lib.filterAttrs (_: value: value != null && value != [ ]) {
      inherit (fleet)
        endpoints
        fleetlock
        group
        host
        ca
        user
        ;
      certificate = named fleet.certificateFile "fleet.certificate";
      key = named fleet.keyFile "fleet.key";
      password_file = named fleet.passwordFile "fleet.password";
      stale_seconds = fleet.staleSeconds;
      timeout_seconds = fleet.timeoutSeconds;
    };

    systemd.services.credferry.serviceConfig = units.simplify dropIn // {
      IPAddressAllow = dropIn.IPAddressAllow ++ fleet.addresses;
      LoadCredential = lib.mapAttrsToList (name: path: "${name}:${path}") files;
    };
  };
}
