"""What is consumed, and within which window."""

from __future__ import annotations

from contextlib import closing

import pytest
from inbox import PATIENCE, Connect, Inbox, nothing_comes, send
from kombu import Connection
from redis import Redis

# The simple interface


def test_a_simple_queue_puts_gets_and_clears(connection: Connection) -> None:
    with closing(connection.SimpleQueue("simple")) as queue:
        for number in range(4):
            queue.put({"n": number}, headers={"k": "v"})
        message = queue.get_nowait()
        assert (message.payload, message.headers) == ({"n": 0}, {"k": "v"})
        message.ack()
        assert queue.clear() == 3
        with pytest.raises(queue.Empty):
            queue.get_nowait()
        with pytest.raises(queue.Empty):
            queue.get(timeout=0.1)


def test_a_simple_queue_gets_each_message_once_in_order_while_others_are_put(
    connection: Connection,
) -> None:
    with closing(connection.SimpleQueue("simple")) as queue:
        for number in range(3):
            queue.put(number)
        found = []
        for number in range(3, 6):
            message = queue.get(timeout=PATIENCE)
            message.ack()
            found.append(message.payload)
            queue.put(number)
        while len(found) < 6:
            message = queue.get(timeout=PATIENCE)
            message.ack()
            found.append(message.payload)
    assert found == list(range(6))


def test_what_a_simple_queue_did_not_hand_out_is_there_for_the_next(
    connect: Connect, redis: Redis
) -> None:
    first = connect()
    with closing(first.SimpleQueue("simple")) as queue:
        for number in range(3):
            queue.put(number)
        queue.get(timeout=PATIENCE).ack()
    first.release()
    with closing(connect().SimpleQueue("simple")) as queue:
        assert sorted(queue.get(timeout=PATIENCE).payload for _ in range(2)) == [1, 2]


def test_a_simple_buffer_needs_no_acknowledgement(connect: Connect, redis: Redis) -> None:
    connection = connect()
    with closing(connection.SimpleBuffer("buffer")) as buffer:
        buffer.put({"n": 1})
        assert buffer.get(timeout=PATIENCE).payload == {"n": 1}
    connection.release()
    with closing(connect().SimpleBuffer("buffer")) as buffer, pytest.raises(buffer.Empty):
        buffer.get_nowait()


@pytest.mark.parametrize("blocking", [True, False])
def test_acknowledged_and_rejected_messages_are_gone_and_requeued_ones_come_back(
    connection: Connection, redis: Redis, prefix: str, blocking: bool
) -> None:
    with closing(connection.SimpleQueue("simple")) as queue:
        for settle, comes_back in (
            ("ack", False),
            ("reject", False),
            ("reject_log_error", False),
            ("requeue", True),
        ):
            queue.put(settle)
            message = queue.get(timeout=PATIENCE) if blocking else queue.get_nowait()
            arguments = (print, ()) if settle.endswith("log_error") else ()
            getattr(message, settle)(*arguments)
            if comes_back:
                again = queue.get(timeout=PATIENCE)
                assert again.payload == settle
                again.ack()
            with pytest.raises(queue.Empty):
                queue.get_nowait()
    assert redis.hlen(f"{prefix}unacked") == 0


# The prefetch window


@pytest.mark.parametrize("prefetch", [1, 3])
def test_no_more_than_the_window_is_unacknowledged(connection: Connection, prefetch: int) -> None:
    send(connection, "q", *range(7))
    inbox = Inbox(connection, "q", prefetch=prefetch)
    while len(inbox.messages) < 7:
        inbox.receive(min(7, len(inbox.messages) + prefetch))
        assert nothing_comes(connection)
        assert sum(not each.acknowledged for each in inbox.messages) <= prefetch
        inbox.ack_all()
    assert inbox.bodies() == list(range(7))


def pop_with_a_shut_window(inbox: Inbox) -> None:
    """A message arrives that was asked for while there was room, of which there is none now."""
    send(inbox.connection, "q", 1)
    inbox.receive(1)
    inbox.connection.transport.cycle.on_poll_start()
    assert inbox.channel._in_poll
    send(inbox.connection, "q", 2)
    inbox.consumer.qos(prefetch_count=1)


def test_a_message_that_finds_the_window_shut_waits_for_room(
    connection: Connection, redis: Redis, prefix: str
) -> None:
    inbox = Inbox(connection, "q", prefetch=2)
    pop_with_a_shut_window(inbox)
    assert nothing_comes(connection)
    assert inbox.bodies() == [1]
    inbox.ack_all()
    assert inbox.receive(2) == [1, 2]
    inbox.ack_all()
    assert redis.hlen(f"{prefix}unacked") == redis.zcard(f"{prefix}unacked_index") == 0


def test_a_message_that_finds_the_window_shut_outlives_the_channel(connect: Connect) -> None:
    connection = connect()
    inbox = Inbox(connection, "q", prefetch=2)
    pop_with_a_shut_window(inbox)
    inbox.consumer.cancel()
    inbox.ack_all()
    inbox.channel.close()
    assert inbox.bodies() == [1]
    assert Inbox(connect(), "q").receive(1) == [2]


def test_several_queues_have_their_turn(connection: Connection) -> None:
    names = ["a", "b", "c"]
    for name in names:
        send(connection, name, *(f"{name}{number}" for number in range(4)))
    inbox = Inbox(connection, *names, prefetch=1)
    for count in range(1, 13):
        inbox.receive(count)
        inbox.ack_all()
    order = inbox.bodies()
    turns = [{each[0] for each in order[start : start + 3]} for start in range(0, 12, 3)]
    assert turns == [set(names)] * 4
    assert [each for each in order if each[0] == "b"] == ["b0", "b1", "b2", "b3"]


@pytest.mark.parametrize(
    ("strategy", "expected"), [("priority", ["b", "a"]), ("sorted", ["a", "b"])]
)
def test_queues_may_have_another_order_than_turns(
    connect: Connect, strategy: str, expected: list[str]
) -> None:
    connection = connect(queue_order_strategy=strategy)
    for name in ("a", "b"):
        send(connection, name, name, name)
    inbox = Inbox(connection, "b", "a", prefetch=1)
    for count in range(1, 5):
        inbox.receive(count)
        inbox.ack_all()
    assert inbox.bodies() == [name for name in expected for _ in range(2)]


def test_without_emulated_acknowledgements_messages_are_consumed_all_the_same(
    connect: Connect, redis: Redis, prefix: str
) -> None:
    connection = connect(ack_emulation=False)
    send(connection, "q", *range(5))
    inbox = Inbox(connection, "q", prefetch=2)
    for count in range(1, 6):
        inbox.receive(count)
        assert redis.hlen(f"{prefix}unacked") == 0
        inbox.ack_all()
    assert inbox.bodies() == list(range(5))
    inbox.channel.close()
    assert redis.llen(f"{prefix}q") == 0
