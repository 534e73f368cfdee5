"""The names of exchanges and queues, and how they are bound."""

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from kombu import Connection, Consumer, Producer

from cos_events import topology
from cos_events.task_message import EMBED, task_headers


def test_channel_and_exchange_of_a_module_have_one_name() -> None:
    assert topology.channel_name("cc") == "mem0.recorded.cc"
    exchange = topology.fanout_exchange("pem")
    assert (exchange.name, exchange.type, exchange.durable) == (
        "mem0.recorded.pem",
        "fanout",
        True,
    )


@pytest.mark.parametrize(
    ("url", "rabbitmq"),
    [
        ("amqp://h//", True),
        ("amqps://h//", True),
        ("pyamqp://h//", True),
        ("redis://h/0", False),
        ("rediss://h/0", False),
        ("memory://", False),
    ],
)
def test_the_broker_is_told_by_its_url(url: str, rabbitmq: bool) -> None:
    assert topology.is_rabbitmq(url) is rabbitmq


def test_on_rabbitmq_a_subscription_is_a_quorum_queue_bound_to_each_exchange_it_wants() -> None:
    queue = topology.subscription_queue("audit", ["cc", "pem"], rabbitmq=True)
    assert queue.modules == ("cc", "pem")
    assert queue(Connection("memory://")).modules == ("cc", "pem")
    assert queue.name == "audit"
    assert queue.durable
    assert queue.queue_arguments == {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "audit.dlq",
    }


def test_a_retry_on_rabbitmq_can_be_delayed_by_the_broker_and_comes_back_to_its_queue_alone() -> (
    None
):
    app = Celery("topology_test", broker="pyamqp://", set_as_current=False)
    app.amqp.queues.add(topology.subscription_queue("audit", ["cc"], rabbitmq=True))
    queue = app.amqp.queues["audit"]
    # What Celery asks of a queue before it uses RabbitMQ's own delay; from a direct exchange it
    # holds the retry in a worker's memory.
    assert queue.exchange.type == "topic"
    assert queue.routing_key == "audit"
    assert not queue.bindings


def test_on_redis_a_subscription_is_a_plain_list() -> None:
    queue = topology.subscription_queue("audit", ["cc"], rabbitmq=False)
    assert (queue.name, queue.bindings, queue.queue_arguments) == ("audit", set(), None)
    assert queue.exchange.name == ""


@pytest.mark.parametrize("rabbitmq", [True, False])
def test_dead_letters_have_a_queue_of_the_subscriptions_name(rabbitmq: bool) -> None:
    queue = topology.dead_letter_queue("audit", rabbitmq=rabbitmq)
    assert queue.name == queue.routing_key == topology.dead_letter_queue_name("audit")
    assert queue.name == "audit.dlq"
    assert queue.exchange.name == ""
    assert queue.queue_arguments == ({"x-queue-type": "quorum"} if rabbitmq else None)


def test_the_publish_task_waits_in_a_queue_of_the_default_exchange() -> None:
    queue = topology.publish_queue()
    assert (topology.publish_queue(no_ack=True).no_ack, queue.no_ack) == (True, False)
    assert (queue.name, queue.routing_key, queue.exchange.name) == (
        "cos_events.publish",
        "cos_events.publish",
        "",
    )


def test_each_message_of_a_subscription_says_whose_it_is() -> None:
    queue = topology.subscription_queue("audit", [], rabbitmq=False)
    asked: list[Any] = []
    bound = queue(SimpleNamespace(basic_consume=lambda **kw: asked.append(kw), is_open=True))
    seen: list[Any] = []
    bound.consume("tag", callback=seen.append)
    message = SimpleNamespace(delivery_info={"exchange": "mem0.recorded.cc", "routing_key": ""})
    asked[0]["callback"](message)
    assert seen == [message]
    assert message.delivery_info == {"exchange": "", "routing_key": "audit"}


def test_a_task_message_is_the_one_that_celery_would_send() -> None:
    theirs = Celery(set_as_current=False).amqp.as_task_v2("id", "t", (), {})
    ours = task_headers("t", "id", "()")
    assert theirs.body == ((), {}, EMBED)
    assert theirs.headers.keys() - ours.keys() == {
        *("stamps", "stamped_headers", "shadow", "group_index", "replaced_task_nesting")
    }
    differing = {name for name, value in ours.items() if theirs.headers.get(name, "?") != value}
    assert differing == {"origin", "ignore_result"}


def test_declared_queues_carry_a_task_message() -> None:
    name = f"audit_{uuid4().hex[:8]}"
    with Connection("memory://") as connection:
        queue = topology.dead_letter_queue(name, rabbitmq=False)
        topology.declare(connection, [topology.fanout_exchange("cc"), queue])
        topology.declare(connection, [queue])
        seen: list[Any] = []
        headers = task_headers("t", "id", "(…)")
        Producer(connection).publish(
            [[1], {}, EMBED], routing_key=queue.name, exchange="", headers=headers
        )
        with Consumer(connection, [queue], callbacks=[lambda _body, got: seen.append(got)]):
            connection.drain_events(timeout=5)
    assert seen[0].payload[0] == [1]
    assert seen[0].headers["task"] == "t"
