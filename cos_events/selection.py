"""Which events a person means: by what they are, and when they were recorded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement


@dataclass(frozen=True, slots=True)
class Selection:
    """Events; what is left out does not matter.

    Attributes:
        module: of this source module.
        event_type: of this type.
        since: recorded then or later.
        until: recorded before.
    """

    module: str | None = None
    event_type: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self, rows: Any) -> list[ColumnElement[bool]]:
        """The same, on a mapped class that has these columns: the outbox, or L1's `base_log`."""
        asked: list[ColumnElement[bool]] = []
        if self.module is not None:
            asked.append(rows.source_module == self.module)
        if self.event_type is not None:
            asked.append(rows.event_type == self.event_type)
        if self.since is not None:
            asked.append(rows.recorded_at >= self.since)
        if self.until is not None:
            asked.append(rows.recorded_at < self.until)
        return asked


EVERYTHING = Selection()
"""No event is left out."""
