"""deploy/grafana/: the dashboard asks for metrics that exist, ours and Ray's, and shows every one of ours."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.stores.metrics import COUNTERS, FURTHER_TAGS, GAUGES

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "endoreward.json"
EXPORTED = {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return content


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (each["definition"] for each in dashboard["templating"]["list"] if each["type"] == "query")


def test_it_names_every_metric_of_ours_and_no_other(dashboard: dict[str, Any]) -> None:
    text = "\n".join(queries(dashboard))
    assert set(re.findall(r"\bray_endoreward_\w+", text)) == EXPORTED
    assert "endoreward_" not in re.sub(r"\bray_endoreward_", "", text)


def test_rays_own_metrics_are_those_of_its_own_dashboard(dashboard: dict[str, Any]) -> None:
    folder = Path(ray.__file__).parent
    source = (folder / "dashboard/modules/metrics/dashboards/default_dashboard_panels.py").read_text()
    exported = source + (folder / "autoscaler/_private/prom_metrics.py").read_text()
    names = {name for query in queries(dashboard) for name in re.findall(r"\b(?:ray|autoscaler)_\w+", query)} - EXPORTED
    assert len(names) >= 5
    missing = {name for name in names if f'"{name.removeprefix("autoscaler_")}"' not in exported and name not in source}
    assert not missing


def test_every_query_is_whole_and_asks_for_a_run_that_is_chosen(dashboard: dict[str, Any]) -> None:
    for query in queries(dashboard):
        for opening, closing in ("()", "{}", "[]"):
            assert query.count(opening) == query.count(closing), query
        for selector in re.findall(r"ray_endoreward_\w+(\{[^}]*\})?", query):
            assert query.startswith("label_values") or 'run=~"$run"' in selector, query
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"]))) <= variables


def test_labels_in_queries_are_tags_of_the_metric(dashboard: dict[str, Any]) -> None:
    tagged = {f"ray_{name}{'_total' if name in COUNTERS else ''}": set(tags) for name, tags in FURTHER_TAGS.items()}
    for query in queries(dashboard):
        wanted = set(re.findall(r"\b(reason|metric)\b(?==|,|\))", query))
        names = set(re.findall(r"ray_endoreward_\w+", query))
        assert wanted <= set().union(*(tagged.get(name, set()) for name in names)), query


def test_panels_do_not_overlap_and_have_numbers_of_their_own(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_the_runbook_explains_every_metric() -> None:
    table = (ROOT / "docs/runbook.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == EXPORTED


def test_names_of_steps_are_those_of_metrics_jsonl(dashboard: dict[str, Any]) -> None:
    documented = (ROOT / "docs/training.md").read_text() + (ROOT / "docs/rl.md").read_text()
    for query in queries(dashboard):
        for names in re.findall(r'metric=~?"([^"$]+)"', query):
            for name in names.split("|"):
                name = name.removesuffix("/.*")
                assert f"`{name}" in documented or f"`{name.removeprefix('eval_')}" in documented, name
