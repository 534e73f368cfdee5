"""The port that a server of ours is about to listen on."""

from __future__ import annotations

import socket

from cos_events.errors import CosEventsError


def usable_port(setting: str, host: str, port: int, option: int | None = None) -> int:
    """The port meant, or a free one for 0.

    Args:
        setting: the variable that says which, for the error.
        host: the address to listen on.
        port: its value.
        option: what `--port` says instead.

    Raises:
        CosEventsError: nothing can listen there.
    """
    name, port = (setting, port) if option is None else ("--port", option)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the servers do: what an earlier one has just left may be taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CosEventsError(
                f"{name}: cannot listen on {host}:{port} ({error.strerror}); stop what does, or "
                "set another port (0 for a free one)"
            ) from error
        return int(probe.getsockname()[1])
