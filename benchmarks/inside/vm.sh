#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The lightest of VMs: `vm.sh VM`. It reads its first credential, however it came, leaves a stamp as the launcher
# does where credferry serves it, and tells the driver what it runs with. Then it leaves a process, as a VM has one.
set -eu
cd "$CREDENTIALS_DIRECTORY"
if [ -e credferry_manifest ]; then
    read -r manifest <credferry_manifest || :
    digest=${manifest##*\"digest\":\"}
    generation=${manifest#*\"generation\":}
    run=${manifest#*\"run\":\"}
    read -r value <credferry_value.C0 || :
    cd "$RUNTIME_DIRECTORY"
    printf '{"version":1,"vm":"%s","generation":%s,"digest":"%s","run":"%s","invocation_id":"%s",%s}' "$1" \
        "${generation%%,*}" "${digest%%\"*}" "${run%%\"*}" "$INVOCATION_ID" \
        '"channel":"api","other_oem_bytes":0' >.stamp
    mv .stamp stamp.json
elif [ -e "shell_$1.0" ]; then
    read -r value <"shell_$1.0" || :
else
    read -r value <plain || :
fi
printf '%s %s\n' "$1" "$value" >/run/bench/started
sleep infinity &
