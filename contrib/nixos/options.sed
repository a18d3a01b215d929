# SPDX-License-Identifier: MIT
# Turns the names of `credferry check` into those of NixOS options, for whoever builds a host: sed -E -f.
s#/nix/store/[^ :]*credferry[.]toml: vms[.]#services.credferry.vms.#g
s#/nix/store/[^ :]*credferry[.]toml: fleet#services.credferry.fleet#g
s#/nix/store/[^ :]*credferry[.]toml: #services.credferry.settings.#g
s#\[vms[.]([^]]*)\]#services.credferry.vms.\1#g
s#\ballow_names\b#allowNames#g
s#\bmax_age_days\b#maxAgeDays#g
s#\bfleet_group\b#fleetGroup#g
s#\bstale_seconds\b#staleSeconds#g
s#\bpassword_file\b#passwordFile#g
s#\btimeout_seconds\b#timeoutSeconds#g
s#\bguest_key\b#guestKey#g
s#\bguest_machine_id\b#guestMachineId#g
s#\bguest_systemd\b#guestSystemd#g
s#\bplaintext_in_argv\b#plaintextInArgv#g
s#(services[.]credferry[.]vms[.][^ ]*units[.])on_failure\b#\1onFailure#g
s#(services[.]credferry[.]vms[.][^ ]*units[.])before_fails\b#\1beforeFails#g
s#(services[.]credferry[.]vms[.][^ ]*units[.])after_fails\b#\1afterFails#g
s#(services[.]credferry[.]vms[.][^ ]*units[.])retry_seconds\b#\1retrySeconds#g
