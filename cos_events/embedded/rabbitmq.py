"""A private RabbitMQ, from the system's own `rabbitmq-server`: no wheel carries one."""

import os
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import quote

from cos_events.embedded.account import hand_over
from cos_events.embedded.child import Child
from cos_events.embedded.ownership import write_private
from cos_events.embedded.process import LOOPBACK, StopSteps, free_port
from cos_events.embedded.server import Server
from cos_events.errors import EmbeddedServerError

BrokerName = Literal["redis", "rabbitmq"]
"""Which server is the broker, where both can be."""

USER = "cos"
"""The user clients connect as; it may do everything."""

SCRIPTS = "/usr/lib/rabbitmq/bin"
"""Debian's own script is here; the one in the PATH is a wrapper that runs as one user only."""

ERLANG = (
    "-kernel inet_dist_use_interface {127,0,0,1}",
    # Erlang's idle schedulers would spin on the cores of those who talk to it.
    "+sbwt none +sbwtdcpu none +sbwtdio none",
)
"""Erlang's own options."""


class EmbeddedRabbitMQ(Server):
    """RabbitMQ with a password, on loopback only, with an Erlang port mapper of its own.

    Stopped and started again it has the same port and what was durable. As root it runs as
    `nobody`.
    """

    name: ClassVar[str] = "RabbitMQ"
    program: ClassVar[str] = "beam.smp"
    stop_steps: ClassVar[StopSteps] = ((signal.SIGTERM, 15.0),)

    def __init__(self, folder: Path, password: str) -> None:
        super().__init__(folder, password)
        self._mapper: Child | None = None
        self._inner_ports = free_port(), free_port()

    @property
    def url(self) -> str:
        """`amqp://cos:<password>@127.0.0.1:<port>//`."""
        password = quote(self._password, safe="")
        return f"amqp://{USER}:{password}@{LOOPBACK}:{self.port}//"

    def stop(self) -> None:
        """Stop it and its port mapper; one that does not run is left alone.

        Raises:
            EmbeddedServerError: it outlived even SIGKILL.
        """
        super().stop()
        if self._mapper is not None:
            self._mapper.stop()

    def empty(self) -> None:
        """Forget all that it keeps on disk; to be called while it is stopped."""
        shutil.rmtree(self._data / "mnesia", ignore_errors=True)

    @property
    def _pid_file(self) -> Path:
        return self._data / "pid"

    def _prepare(self) -> None:
        if not self._data.is_dir():
            self._data.mkdir(mode=0o700)
            hand_over(self._data, self._account)
        if self._mapper is None or self._mapper.pid is None:
            self._start_mapper()

    def _start_mapper(self) -> None:
        command = [_program("epmd"), "-address", LOOPBACK, "-port", str(self._inner_ports[0])]
        with (self.folder / "epmd.log").open("wb") as log:
            self._mapper = Child(command, folder=self._data, log=log, account=self._account)
            self._mapper.launch()

    def _command(self, port: int) -> Sequence[str]:
        script = _server_script()
        mapper_port, node_port = self._inner_ports
        self._configure(port)
        variables = {
            "HOME": self._data,
            # The script then becomes the server instead of waiting for it.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_NODENAME": f"cos{port}@localhost",
            "RABBITMQ_MNESIA_BASE": self._data / "mnesia",
            "RABBITMQ_LOG_BASE": self._data / "log",
            "RABBITMQ_CONFIG_FILE": self._data / "rabbitmq",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self._data / "plugins",
            "RABBITMQ_PID_FILE": self._pid_file,
            "RABBITMQ_DIST_PORT": node_port,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(ERLANG),
            # Or it asks the system's name service, which may take seconds to know nothing.
            "ERL_INETRC": self._data / "inetrc",
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": mapper_port,
        }
        return ["/usr/bin/env", *(f"{name}={value}" for name, value in variables.items()), script]

    def _configure(self, port: int) -> None:
        settings = {
            "listeners.tcp.1": f"{LOOPBACK}:{port}",
            "default_user": USER,
            "default_pass": self._password,
            "log.console": "true",
            "log.file": "false",
            **self._settings,
        }
        file = self._data / "rabbitmq.conf"
        write_private(file, "".join(f"{name} = {value}\n" for name, value in settings.items()))
        hand_over(file, self._account)
        (self._data / "inetrc").write_text(
            '{lookup, [file]}.\n{host, {127,0,0,1}, ["localhost"]}.\n'
        )

    def _has_arguments(self, arguments: str) -> bool:
        return f"-home {self._data} " in arguments

    def _says_ready(self, port: int) -> bool:
        said = self._log.read_text(errors="replace")
        return f"started TCP listener on {LOOPBACK}:{port}" in said

    def _answers(self, port: int) -> bool:
        # By hand: kombu sleeps for seconds between two attempts of its own.
        try:
            with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False


def _server_script() -> str:
    _program("erl")
    return _program("rabbitmq-server", first=SCRIPTS)


def _program(name: str, first: str | None = None) -> str:
    found = (first and shutil.which(name, path=first)) or shutil.which(name)
    if found is None:
        raise EmbeddedServerError(
            f"RabbitMQ is not installed, there is no program {name}: run `apt-get install "
            "rabbitmq-server` (its service need not run), or use Redis as the broker."
        )
    return found
