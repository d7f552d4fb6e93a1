"""Every command of kubectl that the API answers, as one table of rows that each assert the state of the world."""

from tests.support.kubectl_rows import access, applying, other_kinds, reading, writing
from tests.support.kubectl_rows.row import Bench, Row

__all__ = ["ROWS", "Bench", "Row"]

ROWS: tuple[Row, ...] = (*reading.ROWS, *writing.ROWS, *applying.ROWS, *other_kinds.ROWS, *access.ROWS)
