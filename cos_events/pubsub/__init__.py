"""The live feed's client: publish on a Redis channel, listen to one, share one pool.

Everything is for `async` code; the threaded variant has the same name with `_sync` at the end.

Best effort: what is published while nobody is listening, or while Redis is down, is gone. Whatever
must receive every event subscribes to the bus (`cos_events.subscriber`), not to a channel.
"""

from cos_events.pubsub.clients import (
    close_redis_client,
    close_redis_client_sync,
    get_redis_client,
    get_redis_client_sync,
)
from cos_events.pubsub.messages import ReceivedMessage, skipped_messages
from cos_events.pubsub.publish import publish_message, publish_message_sync, redis_breaker
from cos_events.pubsub.subscribe import subscribe_to_channel, subscribe_to_channel_sync

__all__ = [  # noqa: RUF022 - grouped by meaning
    # Publishing
    "publish_message",
    "publish_message_sync",
    "redis_breaker",
    # Listening
    "subscribe_to_channel",
    "subscribe_to_channel_sync",
    "ReceivedMessage",
    "skipped_messages",
    # The pool
    "get_redis_client",
    "get_redis_client_sync",
    "close_redis_client",
    "close_redis_client_sync",
]
