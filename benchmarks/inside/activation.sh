#!/bin/bash
# SPDX-License-Identifier: MIT
#
# What follows a publication in an activation: `activation.sh all|changed UNIT`. sops-nix compares each secret with
# the generation before, byte by byte, and has the units restarted that its configuration names for it.
set -euo pipefail
unit=$2
now=$(readlink /run/secrets)
before=${now%/*}/$((${now##*/} - 1))
declare -A units=()
for file in "$now"/*; do
    name=${file##*/}
    if [[ $1 == all ]] || ! cmp --silent "$file" "$before/$name"; then
        units[${unit/\{\}/${name%%.*}}]=
    fi
done
if ((${#units[@]})); then
    systemctl try-restart -- "${!units[@]}"
fi
