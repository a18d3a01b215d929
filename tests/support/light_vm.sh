#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The lightest of VMs: no hypervisor, but all that the agent sees of one. It reads its credentials, leaves a stamp
# as the launcher does, and beside it what it was given and, a line each, its starts. If it is live, its guest takes
# pushes.
set -eu
cd "$RUNTIME_DIRECTORY"
vm=${RUNTIME_DIRECTORY##*/}
echo start >>"/run/soak/$vm.starts"
read -r manifest <"$CREDENTIALS_DIRECTORY/credferry_manifest" || :
digest=${manifest##*\"digest\":\"}
generation=${manifest#*\"generation\":}
run=${manifest#*\"run\":\"}
{
    read -r own <"$CREDENTIALS_DIRECTORY/credferry_value.OWN" || :
    read -r shared <"$CREDENTIALS_DIRECTORY/credferry_value.SHARED" || :
    printf '%s %s\n' "$own" "$shared"
} >delivered
if [ -e "$CREDENTIALS_DIRECTORY/credferry_value.credferry.manifest" ]; then
    /usr/bin/python3 -IS /usr/lib/credferry-test/soak_guest.py "$vm" &
    until [ -e vsock ]; do sleep 0.02; done
fi
printf '{"version":1,"vm":"%s","generation":%s,"digest":"%s","run":"%s","invocation_id":"%s",%s}' "$vm" \
    "${generation%%,*}" "${digest%%\"*}" "${run%%\"*}" "$INVOCATION_ID" '"channel":"api","other_oem_bytes":0' >.stamp
mv .stamp stamp.json
exec sleep infinity
