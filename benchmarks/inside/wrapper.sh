#!/bin/bash
# SPDX-License-Identifier: MIT
#
# What stands for the launcher in a shell: `wrapper.sh command|api REAL ARGUMENT...`. Each credential of the unit
# becomes an OEM string, with a process each for Base64; over the API, curl creates and boots the VM. No limit is
# checked, no stamp is written, and the strings that the command line has already are lost.
set -euo pipefail
channel=$1 real=$2
shift 2
strings=()
for file in "$CREDENTIALS_DIRECTORY"/*; do
    name=${file##*/}
    strings+=("io.systemd.credential.binary:${name#*_}=$(cat "$file" | base64 --wrap=0)")
done
joined=$(
    IFS=,
    echo "${strings[*]}"
)
if [[ $channel == command ]]; then
    exec "$real" "$@" --platform "oem_strings=[$joined]"
fi
body='{"payload":{"kernel":"/usr/lib/credferry-test/kernel"},"cpus":{"boot_vcpus":1,"max_vcpus":1},'
body+='"memory":{"size":67108864},"platform":{"oem_strings":["'${joined//,/\",\"}'"]}}'
url=http://localhost/api/v1
{
    until curl --silent --fail --unix-socket api.sock --request PUT --header 'Content-Type: application/json' \
        --data-binary @- "$url/vm.create" <<<"$body"; do
        sleep 0.01
    done
    curl --silent --fail --unix-socket api.sock --request PUT "$url/vm.boot"
} >/dev/null &
exec "$real" --api-socket path=api.sock
