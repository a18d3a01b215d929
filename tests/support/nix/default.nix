# SPDX-License-Identifier: MIT
#
# Evaluates a host with the project's modules, on the stubs beside this file; with CREDFERRY_NIXPKGS_LIB, on the `lib`
# of a real nixpkgs that this names.
{
  lib ? import ./lib.nix,
}:
let
  pkgs = import ./pkgs.nix { inherit lib; };
  root = ../../..;
  evalModules =
    modules:
    lib.evalModules {
      inherit modules;
      specialArgs = { inherit pkgs; };
    };
  microvm = import ./microvm.nix { inherit lib pkgs evalModules; };
  producers = import ./producers.nix { inherit lib; };
  guestModule = root + "/contrib/nixos/guest.nix";
  hostModule = root + "/contrib/nixos/host.nix";

  failed = config: map (each: each.message) (lib.filter (each: !each.assertion) config.assertions);

  # What a test looks at. `name` of a package stands for it.
  report =
    { config, ... }:
    {
      failed = failed config;
      inherit (config) warnings;
      tmpfiles = config.systemd.tmpfiles.rules;
      directories = config.systemd.tmpfiles.settings;
      # What is in the file, whether it is checked or not.
      settings =
        let
          file = config.environment.etc."credferry/config.toml".source or null;
        in
        if file == null then config.services.credferry.settings else (file.unchecked or file).value;
      users = config.users.users;
      checks = map (package: package.script) config.system.checks;
      polkit = config.security.polkit.enable;
      tpm = config.security.tpm2.enable;
      etc = builtins.mapAttrs (_: file: file.source.script or (toString file.source)) config.environment.etc;
      units = map (package: { inherit (package) path text; }) config.systemd.packages;
      services = builtins.mapAttrs (_: service: {
        inherit (service)
          after
          overrideStrategy
          path
          requires
          restartIfChanged
          script
          serviceConfig
          unitConfig
          wantedBy
          wants
          ;
      }) config.systemd.services;
      guests = builtins.mapAttrs (
        _: vm:
        let
          guest = if vm.config == null then null else vm.config.config;
        in
        if guest == null then
          null
        else
          {
            failed = failed guest;
            hypervisor = guest.microvm.cloud-hypervisor.package.name;
            inherit (guest.microvm.cloud-hypervisor) platformOEMStrings;
            inherit (guest.boot) kernelModules;
            inherit (guest.microvm) shares;
            keyWantedBy = guest.systemd.services.credferry-key.wantedBy or null;
            sockets = builtins.mapAttrs (_: socket: socket.wantedBy) guest.systemd.sockets;
            packages = map (package: package.script) guest.systemd.packages;
            initrdModules = guest.boot.initrd.availableKernelModules;
          }
      ) config.microvm.vms;
      generators = builtins.mapAttrs (_: each: builtins.attrNames each.files) (
        config.clan.core.vars.generators or { }
      );
    };

  host =
    modules:
    evalModules (
      [
        ./nixos.nix
        hostModule
        microvm.host
      ]
      ++ modules
    );
  sopsHost = modules: host ([ producers.sops ] ++ modules);
  example = [
    (root + "/contrib/examples/britton-desktop/host.nix")
    { microvm.vms.test-vm.config.imports = [ guestModule ]; }
  ];
in
{
  inherit
    lib
    pkgs
    producers
    report
    host
    sopsHost
    example
    guestModule
    root
    ;

  # A machine of a clan with one role's instances, as clan-core's lib/inventory hands them their settings.
  clan =
    instances: modules:
    let
      service = import (root + "/contrib/clan") { };
      role = service.roles.host;
      module =
        settings:
        (role.perInstance {
          settings =
            (lib.evalModules {
              modules = [
                role.interface
                settings
              ];
            }).config;
        }).nixosModule;
    in
    host (
      [
        producers.sops
        producers.clan
      ]
      ++ map module instances
      ++ modules
    );
}
