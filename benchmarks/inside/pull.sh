#!/bin/sh
# SPDX-License-Identifier: MIT
#
# What Vault Agent does in a guest, in a few lines: `pull.sh FIRST PERIOD UNIT`. It asks the host for the value, writes it
# to a file, and restarts the unit if the value is another one. It asks at once, after FIRST seconds, and then every
# PERIOD seconds. A real Vault Agent has a token to renew, a template language, and a program of 400 MB.
set -u
umask 077
mkdir -p /run/pulled
pull() {
    perl -e 'socket S, 40, 1, 0 or exit 1; connect S, pack "SSLLx4", 40, 0, 909, 2 or exit 1; print <S>' >/run/pulled/.K &&
        [ -s /run/pulled/.K ] || return 0
    cmp -s /run/pulled/.K /run/pulled/K || {
        mv /run/pulled/.K /run/pulled/K
        systemctl restart "$1"
    }
}
pull "$3"
sleep "$1"
while :; do
    pull "$3"
    sleep "$2"
done
