"""To one subscription's queue alone: what the relay and a replay send again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kombu.utils.uuid import uuid

from cos_events import broker
from cos_events.errors import BroadcastError
from cos_events.settings import get_settings
from cos_events.subscription import Subscription
from cos_events.task_message import EMBED, task_headers
from cos_events.topology import declare, subscription_queue


def send_to_queue(subscription: Subscription, envelopes: Sequence[tuple[str, int]]) -> None:
    """Put envelopes into a subscription's queue, past the exchange; the queue is made if needed.

    Args:
        subscription: whose queue.
        envelopes: each with the number of attempts that were made at it.

    Raises:
        BroadcastError: the broker did not take them.
    """
    rabbitmq = broker.on_rabbitmq()
    modules = subscription.modules or {get_settings().module}
    try:
        with broker.connect() as connection:
            if rabbitmq:
                declare(connection, [subscription_queue(subscription.name, modules, rabbitmq=True)])
            producer = connection.Producer(auto_declare=False)
            for envelope, attempts in envelopes:
                body, headers = _message(subscription.name, envelope, attempts)
                producer.publish(
                    body,
                    exchange="",
                    routing_key=subscription.name,
                    content_type="application/json",
                    content_encoding="utf-8",
                    headers=headers,
                    retry=False,
                    confirm_timeout=get_settings().wire_timeout,
                )
    except Exception as error:
        raise BroadcastError(
            f"the broker did not take messages for {subscription.name}: {error}"
        ) from error


def _message(name: str, envelope: str, attempts: int) -> tuple[str, dict[str, Any]]:
    if attempts == 0:
        return envelope, {}
    # Only a task message can say how many attempts there were.
    headers = task_headers(name, uuid(), "(<1 event>,)") | {"retries": attempts}
    return json.dumps([[[envelope]], {}, EMBED]), headers
