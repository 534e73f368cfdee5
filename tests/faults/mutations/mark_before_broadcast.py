"""A broken build: rows are marked as published, and committed, before any wire has had them."""

from __future__ import annotations

from collections.abc import Sequence

from cos_events.publisher import BATCH_SIZE, Publisher
from cos_events.store import outbox, subscriptions


def publish(self: Publisher, ids: Sequence[int] | None = None, limit: int = BATCH_SIZE) -> int:
    with self._engine.begin() as connection:
        batch = outbox.claim(connection, limit, ids)
        known = subscriptions.load(connection)
    if batch:
        self._broadcaster.broadcast(batch, known)
    return len(batch)


Publisher.publish = publish
