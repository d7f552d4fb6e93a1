"""Every metric of every program: name, type, unit, labels and, for durations, the first and last instant.

Code makes its metrics from these entries, `docs/reference/metrics.md` lists them, and a test holds the two together. Names have the
prefix `rkfleet_`; the request metrics carry vLLM's suffixes so that dashboards carry over, and OpenTelemetry's GenAI buckets.

Sources: OpenTelemetry GenAI semantic conventions (development status, 2026-04) for buckets and the split of time per output token and
inter-token latency; vLLM `docs/design/metrics.md` for suffixes; Prometheus naming practices for prefixes and units.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

__all__ = ["ALL", "Metric"]

Buckets = tuple[float, ...]

REQUEST_SECONDS: Final[Buckets] = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_SECONDS: Final[Buckets] = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip  # 20, 40 and 80 are added: long prompts take an RK3588 beyond ten seconds.
TOKEN_SECONDS: Final[Buckets] = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric.

    Attributes:
        name: Full name as exposed; counters end in `_total`.
        program: Which program exposes it: controller, registry, gateway or agent.
        instants: For durations: from which instant to which.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    program: Literal["controller", "registry", "gateway", "agent", "every"]
    labels: tuple[str, ...] = ()
    buckets: Buckets = ()
    instants: str = ""


_entries: list[Metric] = []


def _metric(**values: object) -> Metric:
    entry = msgspec.convert(values, Metric)
    _entries.append(entry)
    return entry


# ---- every program -------------------------------------------------------------------------------------------------------------
BUILD_INFO: Final = _metric(
    name="rkfleet_build_info", type="gauge", unit="", program="every", labels=("program", "version"),
    help="1, with the program's name and version as labels.",
)  # fmt: skip

# ---- agent ---------------------------------------------------------------------------------------------------------------------

# ---- gateway -------------------------------------------------------------------------------------------------------------------

# ---- controller ----------------------------------------------------------------------------------------------------------------

# ---- registry ------------------------------------------------------------------------------------------------------------------

ALL: Final[tuple[Metric, ...]] = tuple(_entries)
