"""Writes recorded events into their tables, together with what they are recorded with.

One statement for a whole flush: SQLAlchemy's unit of work takes two to three times as long for the
same rows, and makes a trip to the database for each table (`docs/performance.md`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import (
    Connection,
    Insert,
    Table,
    bindparam,
    column,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY

from cos_events.store.models import OutboxRow

MAX_ROWS = 1_000
"""The most events of one statement."""

MAX_CHARACTERS = 8_000_000
"""The most characters of their envelopes, not counting the first; companions may have as many."""

_OUTBOX = cast("Table", OutboxRow.__table__)
_COLUMNS = "event_id", "source_module", "event_type", "envelope", "traceparent"

_Shape = tuple[tuple[Table, tuple[str, ...]], ...]
"""Tables, and the columns of each that are given."""


def write(connection: Connection, rows: Sequence[OutboxRow]) -> list[tuple[int, str]]:
    """Insert new events, and their companions.

    Args:
        connection: in the transaction that they belong to.
        rows: in the order of recording.

    Returns:
        The outbox id and the source module of each, in the same order.
    """
    written: list[tuple[int, str]] = []
    for batch in _batches(rows):
        tables: dict[Table, list[Mapping[str, Any]]] = {}
        for row in batch:
            for table, values in row.companions or ():
                tables.setdefault(table, []).append(values)
        tables[_OUTBOX] = [{name: getattr(row, name) for name in _COLUMNS} for row in batch]
        shape = tuple((table, tuple(values[0])) for table, values in tables.items())
        alone = all(len(values) == 1 for values in tables.values())
        given = {
            _parameter(table, name): (
                tables[table][0][name] if alone else [row[name] for row in tables[table]]
            )
            for table, names in shape
            for name in names
        }
        found = connection.execute(_statement(shape, alone), given)
        written += [(id_, module) for id_, module in found]
    return written


@event.listens_for(OutboxRow, "before_insert")
def _insert_companions(_mapper: Any, connection: Connection, row: OutboxRow) -> None:
    # For what was recorded too late for `write`: the unit of work is about to insert it.
    for table, values in row.companions or ():
        connection.execute(insert(table), values)


def _batches(rows: Sequence[OutboxRow]) -> Iterator[list[OutboxRow]]:
    batch: list[OutboxRow] = []
    characters = 0
    for row in rows:
        characters += len(row.envelope)
        if batch and (len(batch) == MAX_ROWS or characters > MAX_CHARACTERS):
            yield batch
            batch, characters = [], len(row.envelope)
        batch.append(row)
    if batch:
        yield batch


# Built once: SQLAlchemy caches its compiled form by it.
@lru_cache(maxsize=64)
def _statement(shape: _Shape, alone: bool) -> Insert:
    """The INSERT of one row into each table, or of any number of rows."""
    insert_into = _one_row if alone else _any_rows
    *companions, outbox = (insert_into(table, names) for table, names in shape)
    # PostgreSQL checks foreign keys when the whole statement is done.
    return outbox.add_cte(*(each.cte() for each in companions)).returning(
        _OUTBOX.c.id, _OUTBOX.c.source_module
    )


def _parameter(table: Table, name: str) -> str:
    return f"{table.name}_{name}"


def _one_row(table: Table, names: tuple[str, ...]) -> Insert:
    return insert(table).values(
        {name: bindparam(_parameter(table, name), type_=table.c[name].type) for name in names}
    )


def _any_rows(table: Table, names: tuple[str, ...]) -> Insert:
    """Each column comes as an array; PostgreSQL takes a fifth longer for one row in that form."""
    columns = [table.c[name] for name in names]
    arrays = [
        bindparam(_parameter(table, each.name), type_=ARRAY(each.type, dimensions=1))
        for each in columns
    ]
    given = (
        func.unnest(*arrays)
        .table_valued(*(column(each.name, each.type) for each in columns))
        .render_derived(name=f"new_{table.name}")
    )
    return insert(table).from_select(names, select(*(given.c[name] for name in names)))
