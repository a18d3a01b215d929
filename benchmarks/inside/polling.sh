#!/bin/bash
# SPDX-License-Identifier: MIT
#
# `polling.sh UNIT SECONDS`: hash everything every so often, and restart the VMs whose secrets have changed. They
# read them from /run/secrets themselves (LoadCredential=), so nothing is sealed.
set -euo pipefail
unit=$1
cd /run/secrets/.
sha256sum -- * >/run/bench/sums
while sleep "$2"; do
    cd /run/secrets/.
    sha256sum -- * >/run/bench/.sums
    declare -A units=()
    while read -r _ name; do
        units[${unit/\{\}/${name%%.*}}]=
    done < <(grep -vxFf /run/bench/sums /run/bench/.sums)
    mv /run/bench/.sums /run/bench/sums
    if ((${#units[@]})); then
        systemctl --no-block try-restart -- "${!units[@]}"
    fi
    unset units
done
