"""Rules, dashboard and scrape configuration ask for what the programs expose.

Names and labels are always checked, in Python; where Prometheus' own `promtool` is installed (Debian's package `prometheus`), it also
parses every expression and plays the scenarios of `alerts.test.yaml`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from rkfleet import conditions
from rkfleet.cli.main import app
from rkfleet.kinds import KINDS
from rkfleet.metric_names import ALL, Metric
from tests.support import promql

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "manifests/prometheus"
DASHBOARD = ROOT / "manifests/grafana/dashboards/fleet.json"
TARGET_LABELS = {"job", "instance"}
"""What Prometheus gives every series."""
BOARD_LABELS = {"board", "soc", "simulated"}
"""What the scrape configuration gives every series of a board besides."""
CONDITIONS = {value for name, value in vars(conditions).items() if name.isupper() and isinstance(value, str)}
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed; Debian has it in its package prometheus")


def series() -> dict[str, tuple[Metric, set[str]]]:
    """Return every series name that a program exposes, with its metric and its labels."""
    found: dict[str, tuple[Metric, set[str]]] = {}
    for entry in ALL:
        labels = set(entry.labels) | TARGET_LABELS | (BOARD_LABELS if entry.program == "agent" else set())
        names = [f"{entry.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")] if entry.type == "histogram" else [entry.name]
        found |= {name: (entry, labels | ({"le"} if name.endswith("_bucket") else set())) for name in names}
    return found


def load(name: str) -> Any:
    return yaml.safe_load((PROMETHEUS / name).read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for file in ("recording.yaml", "alerts.yaml") for group in load(file)["groups"] for rule in group["rules"]]


def recorded() -> dict[str, set[str]]:
    """Return the labels of each recorded series: those that its rule groups by, or those of the recorded series that it is made from."""
    found: dict[str, set[str]] = {}
    for rule in rules():
        if "record" in rule:
            found[rule["record"]] = promql.read(rule["expr"]).grouping - {"le"}
    return found


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """Yield title and expression of each query, with Grafana's variables filled in as Grafana does."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "1m")
            yield panel["title"], re.sub(r"\$(simulated|model)\b", ".*", expression)


EXPRESSIONS = [(rule.get("record") or rule["alert"], rule["expr"]) for rule in rules()] + list(dashboard_expressions())


@pytest.mark.parametrize(("name", "text"), EXPRESSIONS, ids=[f"{at}-{name}" for at, (name, _) in enumerate(EXPRESSIONS)])
def test_an_expression_asks_for_series_and_labels_that_exist(name: str, text: str) -> None:
    """An alert over a name that nobody exposes never fires, and a panel over one stays empty, without saying so."""
    exposed, made = series(), recorded()
    available: set[str] = set()
    expression = promql.read(text)
    assert expression.selectors, name
    for selector in expression.selectors:
        if selector.metric in {"up", "ALERTS"}:
            labels = TARGET_LABELS | BOARD_LABELS | ({"alertname", "alertstate", "severity"} if selector.metric == "ALERTS" else set())
        elif ":" in selector.metric:
            labels = made[selector.metric]
        else:
            entry, labels = exposed[selector.metric]
            for label, operator, value in selector.matchers:
                if operator == "=" and label in entry.labels and label not in {"simulated", "status", "code"}:
                    assert value in CONDITIONS or re.search(rf"\b{value}\b", entry.help), f"{name}: {selector.metric} says no {value!r}"
        assert {label for label, _, _ in selector.matchers} <= labels, f"{name}: {selector.metric}"
        available |= labels
    assert expression.grouping <= available, name


def test_a_speed_says_whether_it_is_simulated() -> None:
    """What boards measure of requests is shown and alerted on by the label `simulated`, or filtered by it."""
    measured = {entry.name for entry in ALL if entry.program == "agent" and "model_name" in entry.labels}
    for name, text in EXPRESSIONS:
        expression = promql.read(text)
        for selector in expression.selectors:
            if re.sub(r"_(bucket|sum|count)$", "", selector.metric) in measured:
                assert "simulated" in expression.grouping | {label for label, _, _ in selector.matchers}, name
    assert all("simulated" in labels for name, labels in recorded().items() if not name.startswith("rkfleet:gateway_"))


def test_an_alert_says_one_sentence_and_one_command_that_exists() -> None:
    """Whoever is woken knows what is wrong and what to type; labels in the text are labels of the alert."""
    known = {word for entry in ALL for word in entry.labels} | TARGET_LABELS | BOARD_LABELS
    kinds = {name for kind in KINDS for name in (kind.resource.plural, kind.resource.singular)} | {"events"}
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for rule in rules():
        if "alert" not in rule:
            continue
        annotations = rule["annotations"]
        assert set(annotations) == {"summary", "command"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert re.fullmatch(r"[^.].*\.", annotations["summary"]), rule["alert"]
        assert set(re.findall(r"\$labels\.(\w+)", " ".join(annotations.values()))) <= known, rule["alert"]
        words = annotations["command"].split()
        match words:
            case ["kubectl", "get", "--raw", _]:
                pass
            case ["kubectl", "get" | "describe", kind, *_]:
                assert kind in kinds, rule["alert"]
            case ["rkfleet", command, *_]:
                assert command in commands, rule["alert"]
            case ["docker", "compose", "exec", service, *_]:
                assert service in services, rule["alert"]
            case ["docker", "compose", "restart", *restarted]:
                assert set(restarted) <= set(services), rule["alert"]
            case ["docker", "compose", "logs", "--tail", "50", *_]:
                assert words[5] in services or words[5].startswith("{{"), rule["alert"]
            case _:
                pytest.fail(f"{rule['alert']}: {annotations['command']}")


def test_every_alert_has_a_scenario_in_which_it_fires() -> None:
    """A rule that nobody saw firing is a guess."""
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert alerts == set(re.findall(r'alertname="(\w+)"', (PROMETHEUS / "alerts.test.yaml").read_text()))


def test_every_alert_and_every_metric_of_a_rule_is_in_the_guide() -> None:
    """The guide has a row for each alert."""
    text = (ROOT / "docs/guides/monitoring.md").read_text()
    assert [rule["alert"] for rule in rules() if "alert" in rule and f"`{rule['alert']}`" not in text] == []


def test_the_dashboard_is_provisioned_with_the_source_that_its_queries_name() -> None:
    """Grafana shows nothing for a source that it does not know, and two panels with one id are one panel."""
    dashboard = json.loads(DASHBOARD.read_text())
    [source] = yaml.safe_load((ROOT / "manifests/grafana/provisioning/datasources/rkfleet.yaml").read_text())["datasources"]
    queries = [target for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert {query["datasource"]["uid"] for query in queries} == {source["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    [provider] = yaml.safe_load((ROOT / "manifests/grafana/provisioning/dashboards/rkfleet.yaml").read_text())["providers"]
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    assert f"./manifests/grafana/dashboards:{provider['options']['path']}:ro" in mounts


@pytest.mark.parametrize("text", ["sum(a", "a)", "a{b='c'", "a ? b", 'a{b="c", d}'])
def test_the_reader_of_expressions_refuses_what_is_broken(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        promql.read(text)


def test_the_reader_of_expressions_finds_names_and_labels() -> None:
    read = promql.read('sum by (x, le) (rate(a_total{b="(c)", d=~"e"}[5m])) / on (y) group_left (z) max without (w) (f) > bool 2 and g:h')
    assert read.selectors == [
        promql.Selector("a_total", (("b", "=", "(c)"), ("d", "=~", "e"))), promql.Selector("f"), promql.Selector("g:h"),
    ]  # fmt: skip
    assert read.grouping == {"x", "le", "y", "z", "w"}
    assert read.functions == {"sum", "rate", "max"}


def promtool(*words: str) -> str:
    assert PROMTOOL is not None
    result = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@needs_promtool
def test_prometheus_reads_its_configuration_and_every_rule() -> None:
    said = promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert said.count("SUCCESS") == 4


@needs_promtool
def test_alerts_fire_in_their_scenarios_and_leave_a_healthy_fleet_alone() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(PROMETHEUS / "alerts.test.yaml"))


@needs_promtool
def test_prometheus_parses_every_query_of_the_dashboard(tmp_path: Path) -> None:
    made = [{"record": f"query:{at}", "expr": text} for at, (_, text) in enumerate(dashboard_expressions())]
    (tmp_path / "dashboard.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": made}]}))
    assert f"{len(made)} rules found" in promtool("check", "rules", str(tmp_path / "dashboard.yaml"))
