"""A broken build: the ledger is asked, but nothing is written into it."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from cos_events.store import deliveries


def settle(
    _executor: object, _subscription: str, event_ids: Iterable[UUID], _attempts: int
) -> dict[UUID, deliveries.Settled]:
    return dict.fromkeys(event_ids, deliveries.Settled(0.0, None))


deliveries.settle = settle
