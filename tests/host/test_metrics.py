# SPDX-License-Identifier: MIT
"""Metrics of a real agent, and the alerts and the dashboard that are made for them."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from credferry.agent.audit.events import Event
from credferry.agent.audit.writer import Fact
from credferry.agent.daemon.metrics import Metrics
from credferry.agent.rollout.slots import FleetView
from tests.support.deployment import Deployment
from tests.support.installation import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host
    from tests.support.producer import SopsNix

MONITORING = CHECKOUT / "contrib/monitoring"
DIRECTORY = "/var/lib/prometheus/node-exporter"
FILE = f"{DIRECTORY}/credferry.prom"
DROP_IN = "/etc/systemd/system/credferry.service.d/60-metrics.conf"
CONFIG = f"""
[metrics]
textfile = "{FILE}"
[vms.metered.credentials]
METERED_KEY = {{ secret = "metered-key" }}
"""
VALUES = (b"a value that nobody is to see", b"another value for the metered one")


@pytest.fixture
def deployment(host: Host, sops: SopsNix) -> Iterator[Deployment]:
    """One VM that runs, and an agent that is to write metrics but may not write there yet."""
    made = Deployment(host)
    made.configure(CONFIG)
    made.add_vm("metered")
    sops.publish({"metered-key": VALUES[0]})
    made.credferry("agent", "--once")
    made.start_vm("metered")
    host.run("rm", "-rf", DIRECTORY)
    yield made
    made.close()
    host.run("rm", "-rf", str(Path(DROP_IN).parent), DIRECTORY)
    host.run("systemctl", "daemon-reload")


def samples(host: Host) -> dict[str, float]:
    """All samples of the file as a collector reads it, by what stands before the value in it."""
    text = host.run("cat", FILE, user="nobody").stdout
    return {
        f"{sample.name}{sorted(sample.labels.items()) or ''}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def promtool(*arguments: str | Path, stdin: str = "") -> str:
    """What promtool says, which must be no complaint."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_rotation_is_told(deployment: Deployment, sops: SopsNix) -> None:
    """The agent writes what its drop-in lets it, promtool finds no fault, and nothing secret is in it."""
    host = deployment.host
    host.run("mkdir", "-p", DIRECTORY)
    host.write(DROP_IN, (MONITORING / "credferry-metrics.conf").read_text())
    host.run("systemctl", "daemon-reload")
    deployment.start_agent()
    host.wait(lambda: host.path(FILE).exists(), 20, "the first metrics")
    published_at = time.monotonic()
    sops.publish({"metered-key": VALUES[1]})
    done = "credferry_restarts_total[('result', 'done'), ('vm', 'metered')]"
    host.wait(lambda: samples(host)[done] == 1, 30, "the rotation's metrics")
    deployment.wait_in_step("metered")
    in_step = "credferry_vm_state[('state', 'in step'), ('vm', 'metered')]"
    host.wait(lambda: samples(host)[in_step] == 1, 20, "the end of the rotation")
    found = samples(host)
    assert found["credferry_vm_out_of_step_seconds[('vm', 'metered')]"] == 0
    assert found["credferry_rotation_seconds_count"] == 1
    assert 0 < found["credferry_rotation_seconds_sum"] < time.monotonic() - published_at
    head = json.loads(host.path("/var/lib/credferry/audit.json").read_bytes())
    assert found["credferry_audit_sequence"] == head["sequence"]
    text = host.run("cat", FILE, user="nobody").stdout
    assert promtool("check", "metrics", stdin=text) == ""
    published = deployment.status()["metered"]["published"]
    secret = {"METERED", "metered-key", published["digest"], *published["credentials"].values()}
    assert not [each for each in (*secret, *(value.decode() for value in VALUES)) if each in text]
    host.run("systemctl", "stop", "credferry.service")  # it writes beside the file, then renames
    assert [path.name for path in host.path(DIRECTORY).iterdir()] == ["credferry.prom"]


def test_a_file_that_cannot_be_written(deployment: Deployment, sops: SopsNix) -> None:
    """It is told once, secrets are rotated all the same, and once it can be written it is."""
    host = deployment.host
    deployment.start_agent()
    invocation = host.unit("credferry.service")["InvocationID"]

    def told(message: str) -> int:
        entries = host.journal(_SYSTEMD_INVOCATION_ID=invocation)
        return sum(message in entry.get("MESSAGE", "") for entry in entries)

    sops.publish({"metered-key": VALUES[1]})
    host.wait(lambda: deployment.starts("metered") == 2, 30, "the rotation")
    deployment.wait_in_step("metered")
    host.run("systemctl", "reload", "credferry.service")  # ends with another look
    assert told("metrics cannot be written") == 1
    deployment.configure(CONFIG.replace(FILE, "/run/credferry/metrics.prom"))
    host.run("systemctl", "reload", "credferry.service")
    host.wait(lambda: host.path("/run/credferry/metrics.prom").exists(), 20, "metrics elsewhere")
    host.wait(lambda: told("metrics can be written again") == 1, 20, "the end of the lack")


def test_the_alerts() -> None:
    """Each comes when it should and not when it should not, by promtool's reckoning."""
    assert "SUCCESS: 16 rules found" in promtool("check", "rules", MONITORING / "credferry.rules.yml")
    assert "SUCCESS" in promtool("test", "rules", CHECKOUT / "tests/data/alerts.yml")


def test_names_of_metrics() -> None:
    """Alerts, dashboard and documentation name metrics that there are; the last all of them."""
    text = (MONITORING / "credferry.dashboard.json").read_text()
    dashboard = json.loads(text)
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) >= len(dashboard["panels"]) > 10
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    known = _all_names()
    rules = re.sub(r"#.*", "", (MONITORING / "credferry.rules.yml").read_text())
    variables = json.dumps(dashboard["templating"])
    asked = {name for each in (*queries, rules, variables) for name in re.findall(r"credferry_\w+", each)}
    assert asked <= known | {name + "_bucket" for name in known}
    documented = set(re.findall(r"`(credferry_\w+)", (CHECKOUT / "docs/monitoring.md").read_text()))
    assert documented == known


def test_the_queries(tmp_path: Path) -> None:
    """Each query of the dashboard is PromQL, as promtool reads it."""
    dashboard = json.loads((MONITORING / "credferry.dashboard.json").read_text())
    rules: list[dict[str, Any]] = [
        {"record": f"query:{number}:{index}", "expr": target["expr"].replace("$__rate_interval", "5m")}
        for number, panel in enumerate(dashboard["panels"])
        for index, target in enumerate(panel["targets"])
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", file)


def _all_names() -> set[str]:
    """Names of all metrics of an agent that has written to its audit."""
    metrics = Metrics()
    metrics.hear(Fact(Event.AGENT_STARTED, "", "", None, 1))
    metrics.see_fleet(FleetView())
    return {
        family.name + ("_total" if family.type == "counter" else "") for family in metrics.registry.collect()
    }
