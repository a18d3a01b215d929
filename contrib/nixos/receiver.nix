# SPDX-License-Identifier: MIT
#
# What a guest needs to take credentials while it runs: the receiver and its units, as contrib/guest has them.
{ runCommand, coreutils }:
runCommand "credferry-receiver" { } ''
  install -D -m 0755 ${../guest}/credferry-receive $out/lib/credferry/credferry-receive
  mkdir -p $out/lib/systemd/system
  cp ${../guest}/credferry-receive.socket $out/lib/systemd/system/credferry-receive.socket
  cp ${../guest}/credferry-receive@.service $out/lib/systemd/system/credferry-receive@.service
  substituteInPlace $out/lib/systemd/system/credferry-receive@.service \
    --replace-fail /usr/lib/credferry $out/lib/credferry \
    --replace-fail /bin/rm ${coreutils}/bin/rm
''
