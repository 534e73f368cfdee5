"""Who wants which events."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cos_events.envelope import NAME_PATTERN
from cos_events.errors import SubscriptionError

_NAME = re.compile(NAME_PATTERN.removesuffix("$"))


@dataclass(frozen=True, slots=True)
class Subscription:
    """A durable queue and the task behind it, by one name; its workers compete for the events.

    Attributes:
        name: of the subscription, its queue and its task.
        modules: the source modules that it wants; None for all, today's and tomorrow's.
        event_types: the event types that it wants; None for all.
    """

    name: str
    modules: frozenset[str] | None = None
    event_types: frozenset[str] | None = None

    def __post_init__(self) -> None:
        for what, name in [
            ("subscription", self.name),
            *(("module", module) for module in self.modules or ()),
            *(("event type", event_type) for event_type in self.event_types or ()),
        ]:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise SubscriptionError(
                    f"{name!r} cannot name a {what}: use a lower-case letter, "
                    "then up to 62 lower-case letters, digits and underscores"
                )

    def wants(self, module: str, event_type: str) -> bool:
        """Whether an event of this module and type is for this subscription."""
        return self.wants_of(module) and (
            self.event_types is None or event_type in self.event_types
        )

    def wants_of(self, module: str) -> bool:
        """Whether it wants events of this module, of whatever type."""
        return self.modules is None or module in self.modules


@dataclass(frozen=True, slots=True)
class Recipient(Subscription):
    """A subscription as a publisher meets it.

    Attributes:
        holding: its queue is at its depth; new copies wait in PostgreSQL.
        holds: how often it began to hold.
    """

    holding: bool = False
    holds: int = 0
