"""Both transports speak TLS to a real server, through a front that ends it."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest
from kombu import Connection, Consumer, Producer, Queue
from kombu.asynchronous import Hub
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from cos_events import rabbitmq_transport, redis_transport
from cos_events.embedded import Servers

LONG = "x" * 100_000


@pytest.fixture(scope="module")
def certificate(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    missing: Callable[[str], NoReturn],
) -> Path:
    """A certificate for 127.0.0.1, or the test's parameter, that signs itself, with its key."""
    address = getattr(request, "param", "127.0.0.1")
    if (tool := shutil.which("openssl")) is None:
        missing("openssl is not installed")
    file = tmp_path_factory.mktemp("tls") / "front.pem"
    key, made = file.with_suffix(".key"), file.with_suffix(".crt")
    subject = ["-subj", f"/CN={address}", "-addext", f"subjectAltName=IP:{address}"]
    asked = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    files = ["-keyout", key, "-out", made, "-days", "1"]
    subprocess.run([tool, *asked, *subject, *files], check=True, capture_output=True)
    file.write_text(key.read_text() + made.read_text())
    return file


@pytest.fixture
def trusting(certificate: Path) -> dict[str, Any]:
    """What a client asks that trusts the certificate."""
    return {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": str(certificate)}


@pytest.fixture
def front(certificate: Path) -> Iterator[Callable[[int], int]]:
    """Put TLS in front of a port; gives the port that speaks it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    open_sockets: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
                # What comes in this time goes in one record.
                time.sleep(0.01)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def join(client: socket.socket, port: int) -> None:
        # A client that does not trust the certificate hangs up here.
        with suppress(OSError):
            inner = context.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", port))
            open_sockets.extend((inner, server))
            threading.Thread(target=pump, args=(inner, server), daemon=True).start()
            pump(server, inner)

    def serve(listener: socket.socket, port: int) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=join, args=(client, port), daemon=True).start()

    def start(port: int) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        open_sockets.append(listener)
        threading.Thread(target=serve, args=(listener, port), daemon=True).start()
        found: int = listener.getsockname()[1]
        return found

    yield start
    for each in open_sockets:
        each.close()


@pytest.fixture(params=["rabbitmq", "redis"])
def over_tls(
    request: pytest.FixtureRequest, front: Callable[[int], int], servers: Servers
) -> Callable[..., Connection]:
    """A connection over TLS with our transport; the argument is what it asks of a certificate."""
    if request.param == "rabbitmq":
        url, scheme = request.getfixturevalue("rabbitmq_url"), "amqps"
        transport = rabbitmq_transport.TLS_NAME
    else:
        url, scheme = f"{servers.redis_url.rpartition('/')[0]}/6", "rediss"
        transport = redis_transport.TLS_NAME
    parts = urlsplit(url)
    port = front(parts.port or 5672)
    address = parts._replace(scheme=scheme, netloc=parts.netloc.rpartition(":")[0] + f":{port}")

    def connect(**options: Any) -> Connection:
        if scheme == "rediss":
            options = {f"ssl_{key}": value for key, value in options.items()}
        return Connection(address.geturl(), transport=transport, ssl=options)

    return connect


def test_a_worker_receives_and_acknowledges_over_tls(
    over_tls: Callable[..., Connection], trusting: dict[str, Any], unique: Callable[[str], str]
) -> None:
    queue = Queue(unique("tls"), durable=False, auto_delete=False)
    sent = [f"{number}" if number % 10 else LONG for number in range(60)]
    with over_tls(**trusting) as connection, closing(Hub()) as hub:
        channel: Any = connection.channel()
        bound = queue(channel)
        bound.declare()
        for body in sent:
            Producer(channel).publish([body], routing_key=queue.name)
        received: list[str] = []

        def receive(message: Any) -> None:
            received.append(message.decode()[0])
            message.ack()

        Consumer(channel, [queue], on_message=receive, accept=["json"]).consume()
        connection.register_with_event_loop(hub)
        deadline = time.monotonic() + 60
        while len(received) < len(sent) and time.monotonic() < deadline:
            next(hub.loop)
        assert received == sent
        bound.delete()


@pytest.mark.parametrize("over_tls", ["rabbitmq"], indirect=True)
def test_what_came_in_one_record_with_a_reply_does_not_wait(
    over_tls: Callable[..., Connection], trusting: dict[str, Any], unique: Callable[[str], str]
) -> None:
    queue = Queue(unique("tls"), durable=False, auto_delete=False)
    with over_tls(**trusting) as connection, closing(Hub()) as hub:
        channel: Any = connection.channel()
        bound = queue(channel)
        bound.declare()
        for number in range(10):
            Producer(channel).publish([number], routing_key=queue.name)
        received: list[Any] = []
        channel.basic_qos(0, 1, True)
        Consumer(channel, [queue], on_message=received.append, accept=["json"]).consume()
        connection.register_with_event_loop(hub)
        window, deadline = 1, time.monotonic() + 30
        while len(received) < 10 and time.monotonic() < deadline:
            next(hub.loop)
            if len(received) == window:
                # As Celery's loop does between its turns; the next delivery follows the reply.
                window += 1
                channel.basic_qos(0, window, True)
        assert [each.decode()[0] for each in received] == list(range(10))
        bound.delete()


def test_a_certificate_that_nobody_vouches_for_is_refused(
    over_tls: Callable[..., Connection],
) -> None:
    connection = over_tls(cert_reqs=ssl.CERT_REQUIRED)
    with connection, pytest.raises((ssl.SSLError, KombuError, RedisError), match="CERTIFICATE"):
        connection.channel().queue_declare("none")


@pytest.mark.parametrize("certificate", ["127.0.0.1", "192.0.2.1"], indirect=True)
def test_the_certificate_must_be_that_of_the_server_even_if_nothing_is_asked_of_it(
    over_tls: Callable[..., Connection],
    certificate: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    unique: Callable[[str], str],
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    queue = Queue(unique("tls"), durable=False, auto_delete=True)
    with over_tls() as connection:
        if request.node.callspec.params["certificate"] == "127.0.0.1":
            queue(connection.channel()).declare()
            queue(connection.channel()).delete()
        else:
            with pytest.raises((ssl.SSLError, KombuError, RedisError), match="mismatch"):
                queue(connection.channel()).declare()
