"""How much a publisher may still put into each queue before it must check its depth again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from cos_events.store.outbox import Pending
from cos_events.subscription import Recipient


class QueueRoom:
    """Counts what this process has sent, so that depths are queried rarely. Thread-safe.

    Only half of the room that was found is used before the next check: other publishers fill the
    same queues.

    Parameters:
        depth: the most messages that may wait in a queue.
        margin: the most messages of one batch; a queue with less room than that counts as full.
        by_module: whether a queue gets all events of the modules that it wants, as RabbitMQ's
            exchanges copy them; otherwise only those of the types that it wants.
    """

    def __init__(self, depth: int, margin: int, *, by_module: bool = False) -> None:
        self._depth = depth
        self._margin = margin
        self._by_module = by_module
        self._left: dict[str, int] = {}
        self._lock = threading.Lock()

    def spend(self, batch: Sequence[Pending], recipients: Iterable[Recipient]) -> None:
        """A batch is sent to those that do not hold."""
        kinds = [(pending.source_module, pending.event_type) for pending in batch]
        with self._lock:
            for each in recipients:
                if each.holding:
                    self._left.pop(each.name, None)
                else:
                    gets = sum(
                        each.wants_module(module)
                        if self._by_module
                        else each.wants(module, event_type)
                        for module, event_type in kinds
                    )
                    self._left[each.name] = self._left.get(each.name, 0) - gets

    def unknown(self) -> list[str]:
        """The queues whose depth must be checked before the next batch."""
        with self._lock:
            return [name for name, left in self._left.items() if left < self._margin]

    def look(self, depths: dict[str, int], names: Iterable[str]) -> list[str]:
        """Take note of these queues' depths; returns those that are full."""
        full = []
        with self._lock:
            for name in names:
                room = self._depth - depths.get(name, 0)
                self._left[name] = max(room // 2, self._margin)
                if room < self._margin:
                    full.append(name)
        return full
