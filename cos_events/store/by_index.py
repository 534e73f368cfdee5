"""EXISTS for tables that grow: evaluated row by row, by an index."""

from __future__ import annotations

from sqlalchemy import ColumnElement, literal, select


def there_is(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a row meets these conditions, looked up for each row of the outer statement.

    PostgreSQL turns EXISTS into a join. With statistics that are old, as after a burst, it then
    reads a whole history for the sake of a few rows: a sweep of the relay took a second at 10⁶
    rows, a batch of the feeder four at 50,000. A scalar subquery stays what it is.
    """
    return select(literal(1)).where(*conditions).limit(1).scalar_subquery().is_not(None)
