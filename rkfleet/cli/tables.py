"""Tables of the API (`kubectl get`) as updates of a live view.

In: the steps of a followed table. Out: `live.Update`s with the shown columns. Pure; `objects.py` calls it.
"""

from __future__ import annotations

from typing import Any, Final

from rkfleet.cli import render
from rkfleet.cli.live import Row, Update
from rkfleet.client import Followed

__all__ = ["TableReader"]

Json = dict[str, Any]


class TableReader:
    """Remembers the columns, which only a whole table names.

    Args:
        wide: Also the columns of priority 1.
        namespace: A column with the namespace before all others.
    """

    def __init__(self, *, wide: bool, namespace: bool) -> None:
        self._wide: Final = wide
        self._namespace: Final = namespace
        self._columns: tuple[Json, ...] = ()

    def update(self, step: Followed) -> Update:
        """Return what one step changes."""
        self._columns = step.columns or self._columns
        rows = {_key(row): self._row(row) for row in step.items}
        if step.type == "REPLACED":
            heads = [self._columns[index]["name"].upper() for index in self._shown()]
            return Update(rows, (*(("NAMESPACE",) if self._namespace else ()), *heads))
        return Update({}, whole=False, gone=tuple(rows)) if step.type == "DELETED" else Update(rows, whole=False)

    def _shown(self) -> list[int]:
        return [index for index, column in enumerate(self._columns) if self._wide or not column.get("priority")]

    def _row(self, row: Json) -> Row:
        meta = row["object"]["metadata"]
        cells = [render.cell_text(row["cells"][index]) for index in self._shown()]
        first = (meta.get("namespace", ""),) if self._namespace else ()
        return Row((*first, *cells), version=meta["resourceVersion"], since=meta.get("creationTimestamp") or "")


def _key(row: Json) -> str:
    meta = row["object"]["metadata"]
    return f"{meta.get('namespace', '')}/{meta['name']}"
