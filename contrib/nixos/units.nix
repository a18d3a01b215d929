# SPDX-License-Identifier: MIT
#
# The units of ../systemd for NixOS. They are read, not repeated, so that the two cannot diverge.
{ lib }:
let
  inherit (lib)
    filter
    foldl'
    hasPrefix
    hasSuffix
    splitString
    ;

  # NixOS has options of its own for what relates units; in `unitConfig` they would collide with its.
  relations = {
    After = "after";
    Before = "before";
    BindsTo = "bindsTo";
    PartOf = "partOf";
    Requires = "requires";
    Wants = "wants";
  };

  # A unit file as { SECTION.KEY = [ value ... ]; }. Continued lines are refused rather than misread.
  parse =
    text:
    (foldl'
      (
        state: line:
        let
          header = builtins.match "[[]([A-Za-z]+)]" line;
          pair = builtins.match "([A-Za-z]+)=(.*)" line;
          key = builtins.head pair;
          section = state.file.${state.section} or { };
        in
        if header != null then
          state // { section = builtins.head header; }
        else if pair == null || builtins.match ".*\\\\" line != null then
          throw "credferry: a unit file has a line that is not understood: ${line}"
        else
          state
          // {
            file = state.file // {
              ${state.section} = section // {
                ${key} = (section.${key} or [ ]) ++ [ (builtins.elemAt pair 1) ];
              };
            };
          }
      )
      {
        file = { };
        section = null;
      }
      (filter (line: line != "" && !(hasPrefix "#" line) && !(hasPrefix ";" line)) (splitString "\n" text))
    ).file;

  # systemd.unit(5): a setting that is given more than once is a list, as NixOS would have it. So is a command, since
  # others may add commands of their own (`preStart`), and NixOS joins lists alone.
  simplify = builtins.mapAttrs (
    key: values: if builtins.length values == 1 && !(hasPrefix "Exec" key) then builtins.head values else values
  );
in
{
  inherit parse simplify;

  /*
    A unit's text with the programs of this system.

    agent: path of `credferry`.
    launcher: path of `credferry-launch`.
    systemctl: path of `systemctl`.
    coreutils: their package.
  */
  service =
    {
      agent,
      launcher,
      systemctl,
      coreutils,
    }:
    file:
    builtins.replaceStrings
      [
        "=/usr/bin/credferry "
        "=/usr/bin/credferry-launch "
        "=/usr/bin/systemctl "
        "+/usr/bin/install "
        "+/usr/bin/rm "
      ]
      [
        "=${agent} "
        "=${launcher} "
        "=${systemctl} "
        "+${coreutils}/bin/install "
        "+${coreutils}/bin/rm "
      ]
      (builtins.readFile file);

  /*
    The drop-in of a VM as the attributes of `systemd.services.NAME`. If the unit is not an instance of the VM's name,
    the VM's name replaces %i and %N.

    agent: path of `credferry`.
    coreutils: their package, for the programs that the drop-in starts.
  */
  dropIn =
    {
      vm,
      unit,
      agent,
      coreutils,
    }:
    file:
    let
      text =
        builtins.replaceStrings
          [
            "+/usr/bin/install "
            "+/usr/bin/rm "
            "exec /usr/bin/credferry "
          ]
          [
            "+${coreutils}/bin/install "
            "+${coreutils}/bin/rm "
            "exec ${agent} "
          ]
          (builtins.readFile file);
      named = builtins.replaceStrings [ "%i" "%N" ] [ vm vm ] text;
      sections = parse (if hasSuffix "@${vm}.service" unit then text else named);
      general = sections.Unit or { };
      related = lib.filterAttrs (key: _: relations ? ${key}) general;
    in
    assert removeAttrs sections [ "Unit" "Service" ] == { };
    {
      unitConfig = simplify (removeAttrs general (builtins.attrNames relations));
      serviceConfig = simplify (sections.Service or { });
    }
    // lib.mapAttrs' (key: values: {
      name = relations.${key};
      value = builtins.concatMap (splitString " ") values;
    }) related;
}
