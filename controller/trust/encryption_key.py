"""The file with the keys by which Secrets are encrypted where they are stored; made on the first start.

In: a path. Out: the file is there. `app.py` calls it before the store opens. Controllers that share a database have the same file: one that
was given the others' certificates but not their key must not make one of its own, with which the others could not read what it writes. Nor
is a file made that was named by hand: what is missing there is a disk that is not mounted, or a slip of the pen.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Final

from controller.trust.files import make_private_directory, write_private
from rkfleet.errors import FailedPrecondition

__all__ = ["ensure_key_file"]

KEY_BYTES: Final = 32

_HEAD: Final = "# Keys of this fleet's Secrets, one a line: the first encrypts, all decrypt. Without this file no Secret can be read.\n"


def ensure_key_file(path: Path, random_bytes: Callable[[int], bytes], *, may_make: bool) -> None:
    """Make the key file if it is not there.

    Raises:
        FailedPrecondition: It is not there, and this controller may not make it.
        Unavailable: It cannot be written.
    """
    if path.exists():
        return
    if not may_make:
        raise FailedPrecondition(
            f"the key file {path} is not there: copy it from the controller that wrote this store, or, for a new fleet, make it with"
            f" (umask 077 && openssl rand -base64 {KEY_BYTES} > {path})"
        )
    make_private_directory(path.parent)
    write_private(path, (_HEAD + base64.b64encode(random_bytes(KEY_BYTES)).decode() + "\n").encode())
