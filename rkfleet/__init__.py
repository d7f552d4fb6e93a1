"""The contract of rkfleet: kinds, conditions, errors, manifests, schema, session, client and command line."""

from typing import Final

__all__ = ["__version__"]

__version__: Final = "0.1.0"
