"""What contrib/ has: the alerts pass their own tests, and nothing asks for a metric that does not exist."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from connectionpools_fastapi._monitoring.families import families
from tests.contrib import DASHBOARD, RULES, TESTS_OF_RULES, queries
from tests.programs import path_of
from tests.web import things

METRIC = re.compile(r"connectionpool_\w+")


@pytest.mark.needs_program("promtool")
@pytest.mark.parametrize(
    "command", [("check", "rules", RULES), ("test", "rules", TESTS_OF_RULES)], ids=["check", "test"]
)
def test_alerts_pass_their_own_tests(command: tuple[str, str, Path]) -> None:
    promtool = path_of("promtool")
    assert promtool is not None
    said = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)  # noqa: S603
    assert said.returncode == 0, said.stdout + said.stderr


def test_each_metric_that_is_named_exists() -> None:
    known = {
        family.name + suffix
        for family in families([(("db",), things().stats())])
        for suffix in ({"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""]))
    }
    for text in (RULES.read_text(), TESTS_OF_RULES.read_text(), *queries()):
        assert set(METRIC.findall(text)) <= known
        assert METRIC.search(text)


def test_panels_of_dashboard_have_their_own_places() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["description"] and panel["datasource"]["uid"] == "${datasource}" for panel in panels)
