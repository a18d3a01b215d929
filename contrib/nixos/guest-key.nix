# SPDX-License-Identifier: MIT
#
# What a guest needs to take its key from the host: the unit of contrib/guest. microvm.nix mounts the share.
{
  runCommand,
  coreutils,
  util-linux,
}:
runCommand "credferry-guest-key" { } ''
  install -D -m 0644 ${../guest/credferry-key.service} $out/lib/systemd/system/credferry-key.service
  substituteInPlace $out/lib/systemd/system/credferry-key.service \
    --replace-fail /bin/install ${coreutils}/bin/install \
    --replace-fail /bin/mount ${util-linux}/bin/mount
''
