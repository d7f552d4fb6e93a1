"""What `rkfleet logs` reads from its command line."""

from __future__ import annotations

import pytest

from rkfleet.cli.logs import log_query, parse_seconds, parse_target
from rkfleet.errors import BadRequest, NotFound

QUIET = {"follow": False, "tail": -1, "since": "", "previous": False, "run": 0, "timestamps": False, "source": ""}


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("qwen-1", ("replica", "qwen-1")), ("replica/qwen-1", ("replica", "qwen-1")), ("rep/qwen-1", ("replica", "qwen-1")),
        ("deployment/qwen", ("deployment", "qwen")), ("mdep/qwen", ("deployment", "qwen")), ("board/b-1", ("board", "b-1")),
    ],
)  # fmt: skip
def test_a_target_is_a_replica_unless_its_kind_says_otherwise(text: str, target: tuple[str, str]) -> None:
    assert parse_target(text) == target


def test_what_has_no_logs_is_refused_with_what_has() -> None:
    with pytest.raises(BadRequest, match=r"'model/qwen' has no logs; name a REPLICA, deployment/NAME or board/NAME"):
        parse_target("model/qwen")
    with pytest.raises(BadRequest, match="has no logs"):
        parse_target("board/")
    with pytest.raises(NotFound, match="kind 'pod' is not known"):
        parse_target("pod/qwen")


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("90", 90), ("0s", 0)])
def test_a_duration_is_read_as_people_write_it(text: str, seconds: int) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5x", "-5m", "5m1h", "1.5h"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadRequest, match="is not a duration such as 30s, 5m or 1h30m"):
        parse_seconds(text)


def test_only_what_was_said_is_asked_for() -> None:
    assert log_query(**QUIET) == {}  # type: ignore[arg-type]
    wanted = {**QUIET, "follow": True, "tail": 0, "since": "0s", "run": 2, "timestamps": True, "source": "agent"}
    assert log_query(**wanted) == {  # type: ignore[arg-type]
        "follow": "true", "tailLines": "0", "sinceSeconds": "1", "run": "2", "timestamps": "true", "source": "agent",
    }  # fmt: skip


@pytest.mark.parametrize("change", [{"tail": -2}, {"run": -1}, {"previous": True, "run": 1}])
def test_values_that_mean_nothing_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        log_query(**{**QUIET, **change})  # type: ignore[arg-type]
