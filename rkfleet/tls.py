"""Certificates without a calendar: TLS contexts that do not ask what time it is.

In: a context of `ssl`. Out: the same context, which goes on verifying keys, names and authorities, and looks at no date. Called wherever
a board verifies somebody, because boards boot without a clock, or with one that is years ahead: a wrong date must not cut a board off
from the controller that would tell it better, nor from its gateways. Whether a board's own certificate is still good is the controller's
to judge, by the controller's clock.

Source: OpenSSL `X509_VERIFY_PARAM_set_flags(3)`, X509_V_FLAG_NO_CHECK_TIME.
"""

from __future__ import annotations

import ssl
from typing import Final

__all__ = ["check_dates", "ignore_dates"]

NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME, which `ssl` has no name for.


def ignore_dates(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context, which from now on takes certificates whatever their dates; everything else is verified as before."""
    context.verify_flags |= NO_CHECK_TIME
    return context


def check_dates(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context, which from now on looks at dates, as contexts do by themselves."""
    context.verify_flags &= ~NO_CHECK_TIME
    return context
