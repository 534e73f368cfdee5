"""RabbitMQ's exchanges, queues and bindings, as publishers want them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from cos_events.error_text import one_line
from cos_events.subscription import Recipient
from cos_events.topology import declare, fanout_exchange, subscription_queue, unbind

logger = logging.getLogger(__name__)


class Bindings:
    """What this connection has already declared, so that each is declared once.

    A queue is bound to the exchange of each module that its subscription wants, and unbound while
    it is holding: what the exchange does not copy then waits in PostgreSQL. It is also unbound from
    modules that it no longer wants.

    Parameters:
        connection: to RabbitMQ.
        unbound: which queue was unbound from which module, and what its subscription wanted; may
            outlive the connection, since nobody binds it again until its subscription changes.
    """

    def __init__(
        self, connection: Any, unbound: dict[tuple[str, str], frozenset[str] | None]
    ) -> None:
        self._connection = connection
        self._unbound = unbound
        self._usable: dict[str, bool] = {}
        self._done: set[tuple[str, Recipient]] = set()

    def declare(self, modules: Iterable[str], recipients: Sequence[Recipient]) -> None:
        """Bring the exchanges of these modules, and what is bound to them, up to date."""
        for module in modules:
            if module not in self._usable:
                self._usable[module] = self._make_exchange(module)
            if not self._usable[module]:
                continue
            for recipient in recipients:
                if not recipient.wants_module(module):
                    self._unbind(module, recipient)
                elif (module, recipient) not in self._done:
                    self._bind(module, recipient)
                    self._done.add((module, recipient))

    def _make_exchange(self, module: str) -> bool:
        """Whether it is there, as it should be."""
        exchange = fanout_exchange(module)
        try:
            declare(self._connection, [exchange])
        except self._connection.channel_errors as error:
            # One exchange that somebody declared differently must not stop all the others.
            logger.error(  # noqa: TRY400
                "exchange %s cannot be used: %s; delete it; the relay delivers its events "
                "meanwhile",
                *(exchange.name, one_line(error)),
            )
            return False
        return True

    def _bind(self, module: str, recipient: Recipient) -> None:
        self._unbound.pop((module, recipient.name), None)
        queue = subscription_queue(
            recipient.name, () if recipient.holding else (module,), rabbitmq=True
        )
        try:
            declare(self._connection, [queue])
            if recipient.holding:
                unbind(self._connection, queue, module)
        except self._connection.channel_errors as error:
            # One queue that somebody declared differently must not stop all the others.
            logger.error(  # noqa: TRY400
                "queue %s cannot be used: %s; delete it", queue.name, one_line(error)
            )

    def _unbind(self, module: str, recipient: Recipient) -> None:
        if self._unbound.get((module, recipient.name)) == recipient.modules:
            return
        # There may be no such queue.
        with suppress(*self._connection.channel_errors):
            unbind(self._connection, subscription_queue(recipient.name, (), rabbitmq=True), module)
        self._unbound[module, recipient.name] = recipient.modules
        self._done = {
            each for each in self._done if (each[0], each[1].name) != (module, recipient.name)
        }
