"""EXISTS for tables that grow: evaluated row by row, by an index."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, literal, select

from cos_events.store.models import DeliveryRow


def there_is(*conditions: ColumnElement[bool], row: Any = DeliveryRow) -> ColumnElement[bool]:
    """Whether a delivery meets these conditions, looked up for each row of the outer statements.

    PostgreSQL turns EXISTS into a join. With statistics that are old, as after a burst, it then
    reads a whole history for the sake of a few rows: a sweep of the relay took a second at 10⁶
    rows, a batch of the feeder four at 50,000. A scalar subquery stays what it is.

    Args:
        conditions: on it, and on what the outer statements read.
        row: an alias of it, where they read deliveries too.
    """
    found = select(literal(1)).where(*conditions).limit(1).correlate_except(row)
    return found.scalar_subquery().is_not(None)
