"""What contrib/ offers to a Prometheus and a Grafana."""

import json
from pathlib import Path

CONTRIB = Path(__file__).parents[1] / "contrib"
RULES = CONTRIB / "prometheus" / "connectionpools.rules.yml"
TESTS_OF_RULES = CONTRIB / "prometheus" / "connectionpools.rules.test.yml"
DASHBOARD = CONTRIB / "grafana" / "connectionpools.json"


def queries() -> list[str]:
    """Return what the panels of the dashboard ask, with their variables."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]
