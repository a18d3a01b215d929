# SPDX-License-Identifier: MIT
#
# As much of nixpkgs' `lib` as the project's modules use, so that they can be evaluated where there is no nixpkgs:
# options with types, merged definitions with priorities and conditions, submodules with freeform settings, and
# errors for options that do not exist. What it refuses, nixpkgs refuses; nixpkgs checks more. It stands for
# lib/modules.nix, lib/options.nix, lib/types.nix, and functions of lib/lists.nix, lib/strings.nix, lib/attrsets.nix,
# lib/trivial.nix and lib/meta.nix.
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    concatLists
    concatMap
    elem
    elemAt
    filter
    foldl'
    functionArgs
    genList
    hasAttr
    head
    intersectAttrs
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    map
    match
    replaceStrings
    removeAttrs
    split
    stringLength
    substring
    tail
    ;
  concatStringsSep = builtins.concatStringsSep;

  nameValuePair = name: value: { inherit name value; };
  genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
  unique = foldl' (seen: each: if elem each seen then seen else seen ++ [ each ]) [ ];
  optionals = condition: list: if condition then list else [ ];
  showOption = concatStringsSep ".";

  # The priorities are those of nixpkgs: the lowest number wins.
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  ordinary = 100;
  ofDefault = 1500;

  # Push conditions and overrides of a whole set down to its attributes, so that their names are known without
  # evaluating a condition (which may depend on the configuration that is being evaluated).
  push =
    value:
    if !isAttrs value || !(value ? _type) then
      [ value ]
    else if value._type == "merge" then
      concatMap push value.contents
    else if value._type == "if" then
      map (builtins.mapAttrs (_: content: value // { inherit content; })) (push value.content)
    else if value._type == "override" then
      map (builtins.mapAttrs (_: content: value // { inherit content; })) (push value.content)
    else
      [ value ];

  # A definition's values, each with its priority; none where a condition does not hold.
  discharge =
    priority: value:
    if !isAttrs value || !(value ? _type) then
      [ { inherit priority value; } ]
    else if value._type == "merge" then
      concatMap (discharge priority) value.contents
    else if value._type == "if" then
      (if value.condition then discharge priority value.content else [ ])
    else if value._type == "override" then
      discharge value.priority value.content
    else
      [ { inherit priority value; } ];

  strongest =
    defs:
    let
      best = foldl' (lowest: def: if def.priority < lowest then def.priority else lowest) 9999 defs;
    in
    map (def: def.value) (filter (def: def.priority == best) defs);

  mergeDefs =
    loc: type: defs:
    let
      values = strongest defs;
      wrong = filter (value: !(type.check value)) values;
    in
    if values == [ ] then
      throw "The option `${showOption loc}' was accessed but has no value defined. Try setting the option."
    else if wrong != [ ] then
      throw "A definition for option `${showOption loc}' is not of type `${type.description}'."
    else
      type.merge loc values;

  mergeEqual =
    loc: values:
    if all (value: value == head values) values then
      head values
    else
      throw "The option `${showOption loc}' has conflicting definition values.";

  mkType =
    description: check:
    {
      _type = "option-type";
      inherit description check;
      merge = mergeEqual;
    };

  isTree = value: isAttrs value && !(value ? _type);

  # Attributes of several sets of definitions: name -> the raw definitions.
  gather = sets: foldl' (names: set: names // set) { } sets;
  defsOf = name: sets: map (set: set.${name}) (filter (hasAttr name) sets);

  types = rec {
    bool = mkType "boolean" isBool;
    int = mkType "signed integer" isInt;
    float = mkType "floating point number" builtins.isFloat;
    str = (mkType "string" isString);
    package = mkType "package" (value: isAttrs value && value.type or null == "derivation");
    path = mkType "absolute path" (
      value: isPath value || (isString value && match "/.*" value != null) || package.check value
    );
    raw = mkType "raw value" (_: true);
    unspecified = raw // {
      description = "unspecified value";
    };
    anything = raw // {
      description = "anything";
      merge =
        loc: values: if all isTree values then (attrsOf anything).merge loc values else mergeEqual loc values;
    };
    attrs = mkType "attribute set" isAttrs // {
      merge = _: foldl' (merged: each: merged // each) { };
    };
    lines = str // {
      description = "strings concatenated with \"\\n\"";
      merge = _: concatStringsSep "\n";
    };
    strMatching =
      pattern:
      mkType "string matching the pattern ${pattern}" (value: isString value && match pattern value != null);
    enum = values: mkType "one of ${builtins.toJSON values}" (value: elem value values);
    ints = {
      between =
        low: high:
        mkType "integer between ${toString low} and ${toString high} (both inclusive)" (
          value: isInt value && low <= value && value <= high
        );
      unsigned = mkType "unsigned integer, meaning >=0" (value: isInt value && value >= 0);
      positive = mkType "positive integer, meaning >0" (value: isInt value && value > 0);
    };
    port = ints.between 0 65535;
    numbers.between =
      low: high:
      mkType "integer or floating point number between ${toString low} and ${toString high} (both inclusive)" (
        value: (isInt value || builtins.isFloat value) && low <= value && value <= high
      );
    nullOr =
      type:
      mkType "null or ${type.description}" (value: value == null || type.check value)
      // {
        merge = loc: values: if elem null values then mergeEqual loc values else type.merge loc values;
      };
    oneOf =
      options:
      mkType (concatStringsSep " or " (map (type: type.description) options)) (
        value: any (type: type.check value) options
      )
      // {
        merge =
          loc: values: (head (filter (type: all type.check values) options)).merge loc values;
      };
    either = left: right: oneOf [
      left
      right
    ];
    listOf =
      type:
      mkType "list of ${type.description}" isList
      // {
        merge =
          loc: values:
          concatMap (
            value:
            let
              defs = discharge ordinary value;
            in
            optionals (defs != [ ]) [ (mergeDefs (loc ++ [ "*" ]) type defs) ]
          ) (concatLists values);
      };
    attrsOf =
      type:
      mkType "attribute set of ${type.description}" isAttrs
      // {
        merge =
          loc: values:
          let
            sets = concatMap push values;
            defs = builtins.mapAttrs (name: _: concatMap (discharge ordinary) (defsOf name sets)) (gather sets);
            present = filter (name: defs.${name} != [ ]) (attrNames defs);
          in
          genAttrs present (name: mergeDefs (loc ++ [ name ]) type defs.${name});
      };
    lazyAttrsOf = attrsOf;
    submodule = module: submoduleWith { modules = if isList module then module else [ module ]; };
    submoduleWith =
      { modules, specialArgs ? { }, ... }:
      mkType "submodule" (value: isAttrs value || isFunction value || isPath value)
      // {
        merge =
          loc: values:
          (evalModules {
            modules = modules ++ map (value: if isAttrs value then { config = value; } else value) values;
            specialArgs = specialArgs // {
              name = builtins.elemAt loc (length loc - 1);
            };
            prefix = loc;
          }).config;
      };
    deferredModule = raw;
  };

  # One module, whatever way it is written, as { imports, options, config, freeform }.
  normalise =
    args: module:
    let
      loaded = if isPath module || isString module then import module else module;
      called = if isFunction loaded then loaded (argumentsOf args loaded) else loaded;
      structured = called ? config || called ? options;
      reserved = [
        "imports"
        "options"
        "config"
        "freeformType"
        "_file"
        "_class"
        "key"
      ];
      stray = filter (name: !(elem name reserved)) (attrNames called);
    in
    if structured && stray != [ ] then
      throw "Module has an unsupported attribute `${head stray}'."
    else
      {
        imports = called.imports or [ ];
        options = called.options or { };
        config = if structured then called.config or { } else removeAttrs called reserved;
        freeform = called.freeformType or null;
      };

  # As in nixpkgs, a function gets `name` only where it asks for it by name.
  argumentsOf =
    args: f: if functionArgs f == { } then removeAttrs args [ "name" ] else intersectAttrs (functionArgs f) args;

  # Depth first, a file only once.
  collect =
    args: modules:
    let
      step =
        state: module:
        let
          key = if isPath module || isString module then toString module else null;
          one = normalise args module;
          below = foldl' step {
            seen = state.seen ++ optionals (key != null) [ key ];
            found = state.found;
          } one.imports;
        in
        if key != null && elem key state.seen then state else below // { found = below.found ++ [ one ]; };
    in
    (foldl' step {
      seen = [ ];
      found = [ ];
    } modules).found;

  mergeOptions =
    loc: trees:
    builtins.mapAttrs (
      name: _:
      let
        declared = defsOf name trees;
        here = loc ++ [ name ];
      in
      if any (each: each._type or null == "option") declared then
        if all (each: each._type or null == "option") declared && length declared == 1 then
          head declared
        else
          throw "The option `${showOption here}' is declared more than once."
      else
        mergeOptions here declared
    ) (gather trees);

  evalTree =
    loc: options: freeform: sets:
    let
      defined = gather sets;
      unknown = filter (name: !(options ? ${name})) (attrNames defined);
      known = builtins.mapAttrs (
        name: option:
        let
          here = loc ++ [ name ];
          raw = defsOf name sets;
        in
        if option._type or null == "option" then
          let
            default = optionals (option ? default) [
              {
                priority = ofDefault;
                value = option.default;
              }
            ];
            # A default may itself be conditional or overridden.
            defs = concatMap (discharge ordinary) raw ++ concatMap (def: discharge def.priority def.value) default;
            merged = mergeDefs here option.type defs;
          in
          (option.apply or (value: value)) merged
        else
          evalTree here option (if freeform == null then null else types.anything) (concatMap push raw)
      ) options;
      free = freeform.merge loc (map (set: intersectAttrs (genAttrs unknown (_: null)) set) sets);
    in
    if unknown == [ ] then
      known
    else if freeform == null then
      throw "The option `${showOption (loc ++ [ (head unknown) ])}' does not exist."
    else
      free // known;

  evalModules =
    {
      modules,
      specialArgs ? { },
      prefix ? [ ],
      ...
    }:
    let
      args = specialArgs // {
        inherit lib config options;
      };
      found = collect args modules;
      declared = mergeOptions prefix (map (each: each.options) found);
      # As nixpkgs has it beside an option: the priority of its strongest definition.
      options = builtins.mapAttrs (
        name: option:
        if option._type or null != "option" then
          option
        else
          option
          // {
            highestPrio =
              let
                defs = concatMap (discharge ordinary) (defsOf name (concatMap (each: push each.config) found));
              in
              foldl' (lowest: def: if def.priority < lowest then def.priority else lowest) ofDefault defs;
          }
      ) declared;
      freeform = foldl' (last: each: if each.freeform != null then each.freeform else last) null found;
      config = evalTree prefix options freeform (concatMap (each: push each.config) found);
    in
    {
      inherit config options;
    };

  lib = {
    inherit
      all
      any
      attrNames
      attrValues
      concatLists
      concatMap
      concatStringsSep
      elem
      elemAt
      evalModules
      filter
      foldl'
      genAttrs
      head
      isList
      isString
      length
      listToAttrs
      map
      match
      mkOverride
      nameValuePair
      optionals
      removeAttrs
      replaceStrings
      showOption
      stringLength
      tail
      types
      unique
      ;
    inherit (builtins) isAttrs isFunction mapAttrs;

    mkOption = attributes: attributes // { _type = "option"; };
    mkEnableOption =
      what:
      lib.mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${what}.";
      };
    mkIf = condition: content: {
      _type = "if";
      inherit condition content;
    };
    mkMerge = contents: {
      _type = "merge";
      inherit contents;
    };
    mkDefault = mkOverride 1000;
    mkOptionDefault = mkOverride ofDefault;
    mkForce = mkOverride 50;
    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };

    optional = condition: value: optionals condition [ value ];
    optionalAttrs = condition: value: if condition then value else { };
    optionalString = condition: value: if condition then value else "";
    filterAttrs =
      keep: set: genAttrs (filter (name: keep name set.${name}) (attrNames set)) (name: set.${name});
    mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    concatMapStringsSep =
      separator: f: list:
      concatStringsSep separator (map f list);
    concatMapAttrs = f: set: foldl' (merged: name: merged // f name set.${name}) { } (attrNames set);
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    hasSuffix =
      suffix: text:
      let
        start = stringLength text - stringLength suffix;
      in
      start >= 0 && substring start (stringLength suffix) text == suffix;
    removePrefix =
      prefix: text: if lib.hasPrefix prefix text then substring (stringLength prefix) (-1) text else text;
    removeSuffix =
      suffix: text:
      if lib.hasSuffix suffix text then substring 0 (stringLength text - stringLength suffix) text else text;
    splitString =
      separator: text:
      let
        special = [ "." "+" "*" "[" "(" "?" "|" "^" "$" ];
      in
      filter isString (split (replaceStrings special (map (each: "\\${each}") special) separator) text);
    toInt = text: builtins.fromJSON text;
    trim = text: head (match "[[:space:]]*(.*[^[:space:]]|)[[:space:]]*" text);
    getVersion = package: package.version;
    getExe = package: "${package}/bin/${package.meta.mainProgram or package.pname or package.name}";
    getExe' = package: name: "${package}/bin/${name}";
    versions.major = text: head (match "([0-9]+).*" text);
    genList = genList;
    concatStrings = concatStringsSep "";
    escape = special: replaceStrings special (map (each: "\\${each}") special);
    fileset = {
      unions = map (path: if builtins.pathExists path then path else throw "${toString path} does not exist");
      toSource = { root, fileset }: builtins.seq (toString fileset) root;
    };
    licenses.mit.spdxId = "MIT";
    platforms.linux = [
      "x86_64-linux"
      "aarch64-linux"
    ];
  };
in
lib
