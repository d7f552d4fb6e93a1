"""Web pages that ask a listener which asks nobody for a key: which of them may.

In: the Origin and Host headers of a request, and the origins that an operator allows. Out: whether the request is let in. Called by
`agent/serving/access.py` and `gateway/app.py`.

Such a listener is on loopback, and a browser reaches it for every page that somebody on this machine opens. A page says its origin with
each request that can change something. One whose own name was made to point to 127.0.0.1 (DNS rebinding) may read without that, but not
without its name in Host: so names that are not this machine's are refused. Addresses are no names that anybody can point elsewhere.
Source: RFC 6454, RFC 9110 section 7.2.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

__all__ = ["Pages"]

LOCAL: Final = "localhost"  # With everything below it, it is this machine. Source: RFC 6761 section 6.3.
ANY: Final = "*"


class Pages:
    """The pages of these origins may ask (`https://app.example`, or `*` for all)."""

    def __init__(self, origins: Collection[str] = ()) -> None:
        """Take the origins."""
        self._origins: Final = frozenset(origins)
        self._hosts: Final = frozenset(host for one in origins if (host := urlsplit(one).hostname))

    def allows_origin(self, origin: bytes) -> bool:
        """Return whether a request with this Origin may come in; programs send none."""
        return not origin or ANY in self._origins or origin.decode("latin-1") in self._origins

    def allows_host(self, host: bytes) -> bool:
        """Return whether a request for this Host may come in: an address, this machine's own name, or the name of an allowed origin."""
        if not host or ANY in self._origins:
            return True
        try:
            name = (urlsplit(f"//{host.decode('latin-1')}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name == LOCAL or name.endswith(f".{LOCAL}") or name in self._hosts or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
