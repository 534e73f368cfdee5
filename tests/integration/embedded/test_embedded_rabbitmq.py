"""A RabbitMQ of the run's own, beside any that the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from kombu import Connection, Queue

from cos_events.embedded import EmbeddedRabbitMQ, own_folder, rabbitmq
from cos_events.embedded.process import free_port
from cos_events.errors import EmbeddedServerError

from .conftest import impostor

QUEUE = Queue("kept", durable=True)


@pytest.fixture
def server(rabbitmq_program: None) -> Iterator[EmbeddedRabbitMQ]:
    with own_folder() as home:
        made = EmbeddedRabbitMQ(home.path / "rabbitmq", 'it\'s "secret"')
        yield made
        made.stop()


def of(server: EmbeddedRabbitMQ) -> list[str]:
    """The programs that work in the server's folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(server.folder) in process.cwd():
                found.append(process.name())
    return found


def kept(server: EmbeddedRabbitMQ) -> int:
    with Connection(server.url) as connection:
        return int(QUEUE(connection.default_channel).queue_declare().message_count)


def test_it_listens_on_loopback_only_forgets_all_when_emptied_and_leaves_nothing_running(
    server: EmbeddedRabbitMQ,
) -> None:
    server.start()
    with Connection(server.url) as connection:
        connection.Producer().publish({}, routing_key="kept", declare=[QUEUE])
    listening = {
        each.laddr
        for child in psutil.process_iter()
        if child.pid == server.pid
        for each in child.net_connections()
        if each.status == psutil.CONN_LISTEN
    }
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {"beam.smp", "epmd"} <= set(of(server))
    server.stop()
    assert of(server) == []
    server.empty()
    server.start()
    assert kept(server) == 0


def test_who_took_the_chosen_port_meanwhile_is_asked_nothing(
    server: EmbeddedRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = free_port()
    with impostor(b"\x01") as (taken, heard):
        ports = iter([taken, free])
        monkeypatch.setattr("cos_events.embedded.server.free_port", lambda: next(ports))
        server.start()
        assert server.port == free
        assert heard == []
    assert kept(server) == 0


def test_without_the_program_the_error_says_what_to_install(
    server: EmbeddedRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(rabbitmq, "SCRIPTS", "/nowhere")
    with pytest.raises(EmbeddedServerError, match="apt-get install rabbitmq-server"):
        server.start()
    assert of(server) == []
