# SPDX-License-Identifier: MIT
#
# What the test of a host does, as Python for NixOS's test driver. `steps` needs a host with credferry and the VM `web`:
# tests/host/test_nixos_script.py runs it on a Debian host too. `switch` needs a NixOS host.
{
  steps = ''
    import json


    def state(vm):
        """Name of a VM's state, and the generation that it runs."""
        _, shown = machine.execute("credferry status --json")
        [row] = [row for row in json.loads(shown or "[]") if row["vm"] == vm] or [{"state": "unknown"}]
        return row["state"], (row.get("running") or {}).get("generation")


    def reaches(vm, wanted, generation):
        """Wait until a VM is in a state, and runs a generation."""
        retry(lambda _last: state(vm) == (wanted, generation))


    def rollbacks(vm):
        """How many rollbacks of a VM the audit has."""
        return machine.execute(f"credferry audit --vm {vm}")[1].count("rolled back")


    def invocation(vm):
        """Which start of a VM this is: a new one has another id."""
        return machine.succeed(f"systemctl show -P InvocationID microvm@{vm}.service").strip()


    machine.wait_for_unit("credferry.service")

    with subtest("a VM starts with its credentials"):
        machine.succeed("publish-secrets one")
        machine.succeed("systemctl start microvm@web.service")
        reaches("web", "in step", 1)

    with subtest("the same value again restarts nothing"):
        first = invocation("web")
        machine.succeed("publish-secrets one")
        machine.succeed("credferry sync")
        assert invocation("web") == first

    with subtest("a rotation restarts the VM once"):
        machine.succeed("publish-secrets two")
        reaches("web", "in step", 2)
        second = invocation("web")
        assert second != first

    with subtest("a value that breaks the VM is rolled back"):
        rolled_back = rollbacks("web")
        machine.succeed("mkdir -p /run/test && touch /run/test/unhealthy")
        machine.succeed("publish-secrets three")
        retry(lambda _last: rollbacks("web") > rolled_back)
        machine.succeed("rm /run/test/unhealthy")
        retry(lambda _last: state("web") == ("failed", 2))
        machine.succeed("credferry retry web")
        retry(lambda _last: state("web")[0] == "in step")
        assert invocation("web") != second
  '';

  switch = ''
    with subtest("a switch that adds a VM ends well, and the VM starts once"):
        before = invocation("web")
        machine.succeed("/run/booted-system/specialisation/added/bin/switch-to-configuration test")
        reaches("added", "in step", 1)
        assert machine.succeed("systemctl show -P NRestarts microvm@added.service").strip() == "0"
        assert invocation("web") == before

    with subtest("the journal explains itself"):
        machine.succeed("journalctl -x -t credferry -n 1 -o short | grep -q 'next start'")

    with subtest("after a reboot of the host the VMs run what is published"):
        machine.shutdown()
        machine.start()
        machine.wait_for_unit("microvms.target")
        retry(lambda _last: state("web")[0] == "in step")
        machine.succeed("credferry doctor --vm web >&2")
  '';
}
