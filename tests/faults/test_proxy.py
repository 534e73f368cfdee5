"""What the proxy does to connections, seen from both sides."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cos_events.faults.proxy import Proxy


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        yield listener


@pytest.fixture
def proxy(server: socket.socket) -> Iterator[Proxy]:
    made = Proxy()
    made.start(server.getsockname()[1])
    yield made
    made.stop()


@pytest.fixture
def pair(proxy: Proxy, server: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's connection, and the server's end of it."""
    with connected(proxy) as client:
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(5)
            yield client, accepted


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


Pair = tuple[socket.socket, socket.socket]


def says_nothing(connection: socket.socket) -> bool:
    connection.settimeout(0.3)
    try:
        return connection.recv(1) == b"never"
    except TimeoutError:
        return True
    finally:
        connection.settimeout(5)


def test_what_is_said_arrives_and_so_does_hanging_up(pair: Pair) -> None:
    client, accepted = pair
    client.sendall(b"question")
    assert accepted.recv(100) == b"question"
    accepted.sendall(b"answer")
    assert client.recv(100) == b"answer"
    accepted.close()
    assert client.recv(100) == b""


def test_much_that_nobody_reads_yet_arrives_whole(pair: Pair) -> None:
    client, accepted = pair
    much = bytes(range(256)) * 40_000
    sender = threading.Thread(target=client.sendall, args=(much,))
    sender.start()
    time.sleep(0.2)
    received = b""
    while len(received) < len(much):
        received += accepted.recv(1_000_000)
    sender.join(5)
    assert received == much


def test_what_is_delayed_arrives_late_and_in_order(proxy: Proxy, pair: Pair) -> None:
    client, accepted = pair
    proxy.slow(0.4)
    client.sendall(b"first ")
    assert says_nothing(accepted)
    proxy.heal()
    client.sendall(b"second")
    heard = b""
    while len(heard) < 12:
        heard += accepted.recv(100)
    assert heard == b"first second"


def test_answers_that_are_dropped_were_asked_for_and_their_connection_ends(
    proxy: Proxy, pair: Pair
) -> None:
    client, accepted = pair
    proxy.lose("answers")
    client.sendall(b"question")
    assert accepted.recv(100) == b"question"
    accepted.sendall(b"answer")
    assert says_nothing(client)
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        client.recv(100)


def test_a_connection_that_lost_nothing_outlives_the_dropping(proxy: Proxy, pair: Pair) -> None:
    client, accepted = pair
    proxy.lose("everything")
    proxy.heal()
    client.sendall(b"question")
    assert accepted.recv(100) == b"question"


def test_nothing_arrives_while_everything_is_dropped(proxy: Proxy, pair: Pair) -> None:
    client, accepted = pair
    proxy.lose("everything")
    client.sendall(b"question")
    assert says_nothing(accepted)


def test_that_a_client_hung_up_is_dropped_too_until_the_connection_is_reset(
    proxy: Proxy, pair: Pair
) -> None:
    client, accepted = pair
    proxy.lose("everything")
    client.close()
    assert says_nothing(accepted)
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        accepted.recv(100)


@pytest.mark.parametrize("act", [Proxy.reset, Proxy.cut])
def test_connections_are_reset_on_both_sides(
    act: Callable[[Proxy], None], proxy: Proxy, pair: Pair
) -> None:
    act(proxy)
    for each in pair:
        with pytest.raises(ConnectionResetError):
            each.recv(100)


def test_while_it_is_cut_new_connections_are_reset_and_afterwards_carried(
    proxy: Proxy, server: socket.socket
) -> None:
    proxy.cut()
    with pytest.raises(ConnectionResetError), connected(proxy) as client:
        client.recv(1)
    proxy.heal()
    with connected(proxy) as client:
        accepted, _ = server.accept()
        client.sendall(b"question")
        assert accepted.recv(100) == b"question"
        accepted.close()


def test_a_client_of_a_server_that_does_not_run_is_reset(
    proxy: Proxy, server: socket.socket
) -> None:
    server.close()
    with pytest.raises(ConnectionResetError), connected(proxy) as client:
        client.recv(1)
