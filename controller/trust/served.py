"""The certificate that a listener shows, for as long as the listener runs.

In: the file, and what takes it over. Out: a listener that shows what the file holds, and the gauge that says when that ends. Run by the
controller, which makes server certificates anew in the second half of their life, and by the registry, whose files the controller writes,
or a person where it is on a machine of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from controller.trust.pki import certificate_end
from rkfleet.clock import Clock
from rkfleet.disk import in_thread
from rkfleet.errors import FleetError
from rkfleet.metric_names import CERTIFICATE_EXPIRY
from rkfleet.metrics import Metrics

__all__ = ["follow_certificate"]

# A certificate is made anew months before it ends; an hour is for people who have copied files and wait. Looking reads a few small files.
LOOK_SECONDS: Final = 3600.0

_log = logging.getLogger(__name__)


async def follow_certificate(
    file: Path, name: str, reload: Callable[[], None], *, clock: Clock, metrics: Metrics, renew: Callable[[], object] = lambda: None
) -> None:
    """Have the listener show what the file holds, until cancelled; what fails is tried again at the next look.

    Args:
        file: The certificate, which the listener has loaded.
        name: What the gauge calls it.
        reload: Has the listener load the file again; raises FleetError and goes on with what it had if it cannot.
        clock: Time.
        metrics: Has the gauge.
        renew: Makes the file anew where that is due; called in a thread before each look, may raise FleetError.

    Raises:
        FailedPrecondition: The file cannot be read at the start.
    """
    shown = certificate_end(file)
    gauge = metrics.gauge(CERTIFICATE_EXPIRY, certificate=name)
    gauge.set(shown.timestamp())
    while True:
        await clock.sleep(LOOK_SECONDS)
        try:
            await in_thread(renew)
            found = certificate_end(file)
            if found != shown:
                reload()
                shown = found
                gauge.set(shown.timestamp())
                _log.info("the listener shows a new certificate", extra={"certificate": name, "ends": shown.isoformat()})
        except FleetError as error:
            _log.warning("the certificate of the listener was not renewed", extra={"certificate": name, "cause": error.message})
