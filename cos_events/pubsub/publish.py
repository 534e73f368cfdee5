"""Publishing: quick, and a Redis that is down costs its callers nothing."""

from __future__ import annotations

from redis import RedisError

from cos_events.circuit_breaker import CircuitBreaker, CircuitOpen
from cos_events.errors import InvalidPayload
from cos_events.process import PerProcess
from cos_events.pubsub.clients import get_redis_client, get_redis_client_sync
from cos_events.pubsub.messages import Message, check_channel, encode

_breaker = PerProcess(lambda: CircuitBreaker("the live feed's Redis", reset_after=1.0))


def redis_breaker() -> CircuitBreaker:
    """What stands between this process's publishers and Redis; it logs each outage once."""
    return _breaker.get()


async def publish_message(channel: str, message: Message) -> bool:
    """Publish a message to whoever is listening to the channel right now.

    Args:
        channel: its name, such as `mem0.recorded.cc`.
        message: an `Envelope`, a JSON value, or (any text) JSON that is already encoded.

    Returns:
        Whether Redis took it; True even when nobody listened. False when Redis is down: the
        message is lost. A connection that turns out to be dead is replaced once, and a timeout is
        followed by a second try (`REDIS_RETRY_ON_TIMEOUT`); the message may then go out twice.

    Raises:
        InvalidPayload: a ValueError: the channel's name or the message is bad; says why.
    """
    raw = _checked(channel, message)
    client = get_redis_client()
    try:
        with redis_breaker():
            await client.publish(channel, raw)
    except (RedisError, OSError, CircuitOpen):
        return False
    return True


def publish_message_sync(channel: str, message: Message) -> bool:
    """As `publish_message`, from any thread."""
    raw = _checked(channel, message)
    client = get_redis_client_sync()
    try:
        with redis_breaker():
            client.publish(channel, raw)
    except (RedisError, OSError, CircuitOpen):
        return False
    return True


def _checked(channel: str, message: Message) -> bytes:
    check_channel(channel)
    if "*" in channel:
        raise InvalidPayload(f"{channel!r} is a pattern: it can be subscribed to, not published on")
    return encode(message)
