#!/bin/bash
# SPDX-License-Identifier: MIT
#
# What a competent person writes to push one secret into one running guest: `hand_push.sh SECRET SOCKET`. One watch that
# stays; what has changed goes to the guest's port 901, where `hand_receive.sh` takes it. Nothing is checked or recorded.
set -euo pipefail
last=

look() {
    local sum
    sum=$(sha256sum <"/run/secrets/$1")
    if [[ $sum != "$last" ]]; then
        last=$sum
        # The answer to CONNECT is one line.
        coproc guest { socat -t0 STDIO "UNIX-CONNECT:$2,shut-none"; }
        echo 'CONNECT 901' >&"${guest[1]}"
        read -r _ <&"${guest[0]}"
        base64 -w0 "/run/secrets/$1" >&"${guest[1]}"
        echo >&"${guest[1]}"
        cat <&"${guest[0]}" >/dev/null # until the guest is done
        wait
    fi
}

inotifywait --quiet --monitor --event moved_to --format %f /run | {
    look "$@"
    while read -r name; do
        if [[ $name == secrets ]]; then
            look "$@"
        fi
    done
}
