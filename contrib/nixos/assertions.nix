# SPDX-License-Identifier: MIT
#
# Refuses mistakes of a host's configuration that can be seen when it is built. Each message names the option, the
# reason and the remedy.
{
  config,
  lib,
  options,
  ...
}:
let
  inherit (lib)
    any
    attrValues
    concatLists
    concatStringsSep
    elem
    filter
    mapAttrsToList
    optionals
    ;

  cfg = config.services.credferry;
  budget = import ./budget.nix { inherit lib; };
  power = import ./power.nix { inherit lib; };
  guests = import ./guests.nix {
    inherit lib;
    host = config;
  };

  source = cfg.settings.source.path;
  sources = import ./sources.nix { inherit lib config options; };
  vms = cfg.vms;
  eachVm = f: concatLists (mapAttrsToList f vms);
  eachCredential = f: eachVm (name: vm: mapAttrsToList (f name vm) vm.credentials);
  state = "/var/lib/credferry";
  at = name: "services.credferry.vms.${name}";
  list = names: if names == [ ] then "there are none" else concatStringsSep ", " names;

  # --- Producers -------------------------------------------------------------------------------------------

  sops = optionals (options ? sops) (
    filter (secret: !secret.neededForUsers) (attrValues config.sops.secrets)
    ++ attrValues (config.sops.templates or { })
  );
  # sops-nix puts a file below /run/secrets by its name, and `path` may be a link to it from elsewhere.
  published =
    optionals (options ? sops) (
      map (secret: "/run/secrets${lib.optionalString secret.neededForUsers "-for-users"}/${secret.name}") (
        attrValues config.sops.secrets
      )
      ++ map (template: "/run/secrets/rendered/${template.name}") (attrValues (config.sops.templates or { }))
    )
    ++ optionals (options ? age) (
      map (secret: if secret.symlink then "${config.age.secretsDir}/${secret.name}" else secret.path) (
        attrValues config.age.secrets
      )
    );
  # Only for these sources is it known what they publish.
  isKnown =
    source:
    source == null
    || elem source [
      "secrets"
      "secrets-for-users"
      "agenix"
    ]
    && sources.path source != null;
  below = path: map (lib.removePrefix "${path}/") (filter (lib.hasPrefix "${path}/") published);

  # --- What else restarts a VM ------------------------------------------------------------------------------

  # A restart of a unit that microvm@NAME requires also restarts microvm@NAME.
  restarters =
    vm:
    let
      instance = builtins.match "microvm@(.*)[.]service" vm.unit;
    in
    [ vm.unit ]
    ++ optionals (instance != null) (
      map (part: "microvm-${part}@${builtins.head instance}.service") [
        "macvtap-interfaces"
        "pci-devices"
        "set-booted"
        "tap-interfaces"
        "virtiofsd"
      ]
    );
  # sops-nix takes names without a suffix for services, as systemctl does.
  named = units: unit: any (each: each == unit || "${each}.service" == unit) units;

  bySops =
    vm:
    map (secret: secret.name) (
      filter (
        secret: any (named ((secret.restartUnits or [ ]) ++ (secret.reloadUnits or [ ]))) (restarters vm)
      ) sops
    );

  byPath =
    vm:
    builtins.attrNames (
      lib.filterAttrs (
        name: path: elem (path.pathConfig.Unit or "${name}.service") (restarters vm)
      ) config.systemd.paths
    );

  # The files of the secrets in a unit's triggers: NixOS would restart the VM at each edit of them.
  encrypted = concatLists (
    map (
      secret:
      filter (each: each != "") (
        map toString (
          optionals (secret ? sopsFile) [
            secret.sopsFile
            secret.sopsFileHash
          ]
        )
      )
    ) (filter (secret: secret ? sopsFile) sops)
    ++ optionals (options ? age) (map (secret: [ (toString secret.file) ]) (attrValues config.age.secrets))
  );
  # A path in a string is a copy in the store, whose name ends with that of the file.
  isOfSecret =
    trigger:
    elem trigger encrypted
    || any (
      file: lib.hasPrefix "${builtins.storeDir}/" trigger && lib.hasSuffix "-${baseNameOf file}" trigger
    ) encrypted;
  # microvm.nix puts the guest's system into the triggers. If that does not evaluate, Nix must show its error.
  byTrigger =
    vm:
    any (
      trigger:
      let
        isText = builtins.tryEval (builtins.isString trigger || builtins.isPath trigger);
      in
      isText.success && isText.value && isOfSecret (toString trigger)
    ) (config.systemd.services.${lib.removeSuffix ".service" vm.unit}.restartTriggers or [ ]);

  # --- The budget ------------------------------------------------------------------------------------------

  strings =
    name:
    let
      guest = guests.config name;
    in
    optionals (guest != null) (
      (guest.microvm.cloud-hypervisor.platformOEMStrings or [ ])
      ++ lib.optional ((guest.microvm.vsock.cid or null) != null) budget.notifyString
    );
  least =
    name: vm:
    budget.static (strings name)
    + budget.credentials vm.guestKey vm.credentials
    + (if vm.live then budget.manifest name vm.guestKey (builtins.attrNames vm.credentials) else 0);
  count =
    name: vm:
    builtins.length (strings name ++ builtins.attrNames vm.credentials) + (if vm.live then 1 else 0);

  # What makes a guest a confidential one, whose systemd ignores OEM strings (src/core/import-creds.c).
  confidential =
    guest:
    filter (
      word: builtins.match "--igvm(=.*)?|((--platform=|.*,)?(tdx|sev_snp)=(on|true)(,.*)?)" word != null
    ) (if guest == null then [ ] else guest.microvm.cloud-hypervisor.extraArgs or [ ]);

  # What the launcher refuses of a declared VM's options (launcher/plan.py, vmconfig.py). It judges the whole command
  # when the host is built; this is known without building the VM.
  refused =
    vm: guest:
    let
      words = if guest == null then [ ] else guest.microvm.cloud-hypervisor.extraArgs or [ ];
      isPlain = any (each: each.text == null && !(isSealed vm each)) (attrValues vm.credentials);
      matching = pattern: filter (word: builtins.match pattern word != null) words;
    in
    optionals isPlain (matching "-v+|--dbus-.*")
    ++ optionals (vm.channel == "api") (
      matching "--gpu(=.*)?"
      ++ lib.optional (guest != null && (guest.microvm.graphics.enable or false)) "microvm.graphics.enable"
    );

  isSealed = vm: each: if each.seal == null then vm.guestKey && each.text == null else each.seal;
in
{
  # Not refused: the VM may be made by hand (microvm -c).
  config.warnings = optionals (cfg.enable && guests.names != [ ]) (
    map (name: ''
      ${at name}: no VM of this name is declared on this host; microvm.vms has: ${list guests.names}.
      If it is made elsewhere, say so by ${at name}.unit = "${vms.${name}.unit}".
    '') (filter (name: !(elem name guests.names) && vms.${name}.isExpectedHere) (builtins.attrNames vms))
  );

  config.assertions =
    # Without the agent nothing would ever be sealed for these VMs, and they would not start.
    map (name: {
      assertion = cfg.enable || !(guests.isWrapped name || guests.files name != { });
      message = ''
        microvm.vms.${name}: the VM starts with credferry's credentials only, but credferry does not run on this host.
        Set services.credferry.enable = true; or remove oemSecretsFiles and credferry.enable in the VM.
      '';
    }) guests.names
    ++ optionals cfg.enable (
      map (name: {
        assertion =
          !(guests.isWrapped name)
          || vms ? ${name}
          || any (vm: vm.unit == "microvm@${name}.service") (attrValues vms);
        message = ''
          microvm.vms.${name}: the VM starts with credferry's credentials only, and gets none on this host.
          Set microvm.cloud-hypervisor.oemSecretsFiles in the VM, or ${at name}.credentials; or set credferry.enable = false in the VM.
        '';
      }) guests.names
      ++ [
        {
          assertion = (cfg.settings.state_directory or state) == state;
          message = ''
            services.credferry.settings.state_directory: the units of the agent and of the VMs keep the state in ${state}.
            Remove the setting. If the state must be on another disk, mount that at ${state}.
          '';
        }
      ]
      ++
      eachCredential (
        name: vm: credential: each: {
          assertion = (each.secret == null) != (each.text == null);
          message = ''
            ${at name}.credentials.${credential}: expected either secret or text.
          '';
        }
      )
      ++ eachCredential (
        name: vm: credential: each: {
          assertion = each.secret == null || !(lib.hasPrefix "/" each.secret);
          message = ''
            ${at name}.credentials.${credential}: ${toString each.secret} is not below services.credferry.settings.source.path, ${source}.
            It is in no other source: settings.sources, sops-nix, agenix, security.acme.
            Name a file that is published there, or add settings.sources.NAME.path. (A clan var has no path before `clan vars generate`.)
          '';
        }
      )
      ++ eachCredential (
        name: vm: credential: each: {
          assertion = sources.path each.source != null;
          message = ''
            ${at name}.credentials.${credential}: there is no source ${toString each.source}.
            Add services.credferry.settings.sources.${toString each.source}.path.
          '';
        }
      )
      ++ eachCredential (
        name: vm: credential: each: {
          assertion =
            !cfg.checkSecrets
            || each.secret == null
            || lib.hasPrefix "/" each.secret
            || !isKnown each.source
            || elem each.secret (below (sources.path each.source));
          message =
            let
              path = toString (sources.path each.source);
            in
            ''
            ${at name}.credentials.${credential}: neither sops.secrets nor age.secrets publishes ${path}/${toString each.secret}.
            Below ${path} are: ${list (below path)}.
          '';
        }
      )
      ++ eachCredential (
        name: vm: credential: each: {
          assertion = vm.channel != "command" || each.text != null || isSealed vm each || vm.plaintextInArgv;
          message = ''
            ${at name}.credentials.${credential}: channel = "command" would show it in /proc/PID/cmdline.
            Use channel = "api", or guestKey = true so that values are sealed for the guest.
          '';
        }
      )
      ++ eachCredential (
        name: vm: credential: each: {
          assertion = !(isSealed vm each) || vm.guestKey;
          message = ''
            ${at name}.credentials.${credential}: seal = true needs a guest key to seal with: set guestKey = true.
          '';
        }
      )
      ++ eachCredential (
        name: vm: credential: each: {
          assertion = !(power.isPowerful credential) || elem credential vm.allowNames;
          message = ''
            ${at name}.credentials.${credential}: a credential of this name gives power over the guest.
            Rename it, or set allowNames = [ "${credential}" ] if that is wanted.
          '';
        }
      )
      ++ eachVm (
        name: vm:
        let
          guest = guests.config name;
        in
        [
          {
            assertion = vm.credentials != { };
            message = ''
              ${at name}: has no credentials. Give it some, or remove it: its unit does not start without.
            '';
          }
          {
            assertion = bySops vm == [ ];
            message = ''
              ${at name}: sops-nix restarts ${vm.unit} as well, by restartUnits or reloadUnits of: ${list (bySops vm)}.
              Remove it there: credferry restarts a VM when a value that it uses has changed, and only then.
            '';
          }
          {
            assertion = byPath vm == [ ];
            message = ''
              ${at name}: ${vm.unit} is restarted by systemd.paths as well: ${list (byPath vm)}.
              Remove them: credferry restarts a VM when a value that it uses has changed, and only then.
            '';
          }
          {
            assertion = !(byTrigger vm);
            message = ''
              ${at name}: the restartTriggers of ${vm.unit} hold the encrypted file of a secret, so that NixOS restarts it as well.
              Remove it there: credferry restarts a VM when a value that it uses has changed, and only then.
            '';
          }
          {
            assertion = vm.channel == "directory" || least name vm <= budget.limit vm.guestSystemd;
            message = ''
              ${at name}: its OEM strings take at least ${toString (least name vm)} bytes, ${toString (budget.static (strings name))} of them by
              microvm.cloud-hypervisor.platformOEMStrings and the notify socket; a guest with systemd ${toString vm.guestSystemd}
              reads ${toString (budget.limit vm.guestSystemd)}. Remove some${
                lib.optionalString (vm.guestSystemd < 257) ", or run systemd 257 in the guest and say so by guestSystemd"
              }.
            '';
          }
          {
            assertion = vm.channel == "directory" || count name vm <= budget.maxCount;
            message = ''
              ${at name}: ${toString (count name vm)} OEM strings are more than the ${toString budget.maxCount} that SMBIOS can count.
            '';
          }
          {
            assertion = vm.channel == "directory" || guest == null || guest.microvm.hypervisor == "cloud-hypervisor";
            message = ''
              ${at name}: its hypervisor is not cloud-hypervisor: set microvm.hypervisor = "cloud-hypervisor" in the VM.
            '';
          }
          {
            assertion = vm.channel == "directory" || (guest.microvm.credentialFiles or { }) == { };
            message = ''
              ${at name}: microvm.nix refuses microvm.credentialFiles for cloud-hypervisor.
              Set microvm.cloud-hypervisor.oemSecretsFiles in the VM instead: the files are read when it starts, not when it is built.
            '';
          }
          {
            assertion = vm.channel == "directory" || guest == null || guests.isWrapped name;
            message = ''
              ${at name}: its hypervisor is not started by credferry-launch, so that no credential would reach it.
              Import credferry's guest module in the VM and set microvm.cloud-hypervisor.oemSecretsFiles or credferry.enable there.
            '';
          }
          {
            assertion = refused vm guest == [ ];
            message = ''
              ${at name}: the launcher refuses to start the VM with ${list (refused vm guest)}, from its microvm.* options.
              Remove it there; or seal every secret for the guest (guestKey = true), and for --gpu set channel = "command".
            '';
          }
          {
            assertion = guests.machineId name == null || vm.guestKey;
            message = ''
              ${at name}.guestKey: the guest takes a key from the host (credferry.guestKey.enable), but nothing is sealed with it.
              Remove ${at name}.guestKey = false, or credferry.guestKey.enable in the VM.
            '';
          }
          {
            assertion = guests.machineId name == null || guest.credferry.guestKey.vm == name;
            message = ''
              ${at name}: the guest would look for the key of ${guest.credferry.guestKey.vm or ""}.
              Set credferry.guestKey.vm = "${name}" in the VM.
            '';
          }
          {
            assertion = vm.guestMachineId == null || vm.guestKey;
            message = ''
              ${at name}.guestMachineId: the host makes a key only where values are sealed for the guest: set guestKey = true.
            '';
          }
          {
            assertion =
              guest == null
              || vm.guestMachineId == null
              || lib.any (share: share.tag == "credferry-key") (guest.microvm.shares or [ ]);
            message = ''
              ${at name}.guestMachineId: the guest has no share from which it could take its key.
              Set credferry.guestKey.enable = true in the VM.
            '';
          }
          {
            assertion = !vm.live || guests.hasVsock name != false;
            message = ''
              ${at name}.live: the host sends new values over the VM's vsock, and the VM has none.
              Set microvm.vsock.cid in the VM to a number that no other VM has, or set ${at name}.live = false.
            '';
          }
          {
            assertion = !vm.live || !(vm.settings.initrd or false);
            message = ''
              ${at name}.live: a push cannot change what travels in the guest's initrd.
              Set ${at name}.live = false, or leave out settings.initrd.
            '';
          }
          {
            assertion = !vm.live || vm.channel != "command" || vm.guestKey || vm.plaintextInArgv;
            message = ''
              ${at name}.live: channel = "command" would show the guest's manifest in /proc/PID/cmdline.
              Use channel = "api", or guestKey = true so that it is sealed for the guest.
            '';
          }
          {
            assertion =
              confidential guest == [ ]
              || ((vm.settings.initrd or false) && lib.all (isSealed vm) (attrValues vm.credentials));
            message = ''
              ${at name}: ${list (confidential guest)} in microvm.cloud-hypervisor.extraArgs makes the guest confidential, and systemd in such a guest ignores OEM strings.
              Seal every value for the guest (guestKey = true, and seal = true for texts), and set channel = "command" and settings.initrd = true.
            '';
          }
          {
            # What the initrd's PID 1 imported, the system's does not import again (systemd src/core/import-creds.c).
            assertion =
              guest == null || !(vm.settings.initrd or false) || (guest.credferry.importInInitrd or false);
            message = ''
              ${at name}: values come by the initrd, whose systemd would then be the only one to import credentials.
              Set credferry.importInInitrd = true in the VM, so that it imports the OEM strings as well.
            '';
          }
        ]
      )
    );
}
