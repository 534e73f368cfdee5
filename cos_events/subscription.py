"""Who wants which events."""

from __future__ import annotations

from dataclasses import dataclass

from cos_events.envelope import why_no_name
from cos_events.errors import SubscriptionError


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
            ("a subscription", self.name),
            *(("a module", module) for module in self.modules or ()),
            *(("an event type", event_type) for event_type in self.event_types or ()),
        ]:
            if why := why_no_name(what, name):
                raise SubscriptionError(why)

    def wants(self, module: str, event_type: str) -> bool:
        """Whether an event of this module and type is for this subscription."""
        return self.wants_module(module) and (
            self.event_types is None or event_type in self.event_types
        )

    def wants_module(self, module: str) -> bool:
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
