"""The names of the demo's steps, as `--break` takes them and messages show them."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Step"]


class Step(StrEnum):
    """The steps of the demo, in order."""

    fetch = "fetch"
    start = "start"
    push = "push"
    apply = "apply"
    rollout = "rollout"
    answer = "answer"
    rates = "rates"
    update = "update"
    loss = "loss"
    metrics = "metrics"
    stop = "stop"
