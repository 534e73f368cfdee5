"""All configuration, from the environment (and `.env` in development), validated as a whole."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from kombu.utils.url import parse_url
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from cos_events.duration import parse_duration
from cos_events.envelope import Name
from cos_events.errors import ConfigurationError


def mask(url: str) -> str:
    """The URL with its passwords replaced, in its query too, fit for a log or a page."""
    # Not by urlsplit: it stumbles over what SQLAlchemy takes, such as a slash in a password or an
    # e-mail address for a user.
    url = re.sub(r"^(\w[\w+.-]*://)?+([^:]*):.*@", r"\1\2:***@", url, flags=re.DOTALL)
    return re.sub(r"([?&][^=&]*=)([^&]*)", _masked, url)


def _masked(option: re.Match[str]) -> str:
    name, value = option.groups()
    return name + ("***" if "pass" in unquote(name).lower() else value)


def outline(url: str) -> str:
    """What may be shown of a URL that is refused, its scheme: anything else may be the secret."""
    scheme = re.match(r"[A-Za-z][\w+.-]*://", url)
    return f"{scheme[0] if scheme else ''}…"


def _url(*schemes: str, several: bool = False) -> AfterValidator:
    def check_one(url: str) -> None:
        scheme = url.partition("://")[0]
        if scheme not in schemes or "://" not in url:
            raise ValueError(f"must start with {' or '.join(f'{s}://' for s in schemes)}")
        try:
            if scheme.startswith("postgres"):
                make_url(url)
            else:
                urlsplit(url).port  # noqa: B018 - it raises
        except (ArgumentError, ValueError):
            raise ValueError(
                f"is not {scheme}://user:password@host:port/…: check its @, its port and its "
                "brackets"
            ) from None

    def check(url: str) -> str:
        for each in url.split(";") if several else [url]:
            check_one(each)
        return url

    return AfterValidator(check)


def _host_and_port(listen: str) -> str:
    host_and_port = re.fullmatch(r"[^\s:/]+:(\d{1,5})", listen)
    if not host_and_port or int(host_and_port[1]) > 65_535:
        raise ValueError("must be host:port, such as 127.0.0.1:9464")
    return listen


def _escaped(url: str) -> str:
    # SQLAlchemy ends the password at its first @; the clients of the brokers end it at the last.
    if "@" in (make_url(url).host or ""):
        raise ValueError("has an @ in its password: write that as %40")
    return url


def _without_driver(url: object) -> object:
    # The application's own may be asyncpg, say; the bus has its own connections.
    return re.sub(r"^postgresql\+\w+://", "postgresql://", url) if isinstance(url, str) else url


def _psycopg2(url: str) -> str:
    return "postgresql+psycopg2://" + url.partition("://")[2]


def _for_kombu(urls: str) -> str:
    for url in urls.split(";"):
        try:
            parse_url(url)
        except (KeyError, TypeError):
            raise ValueError(
                "has an option that Kombu does not take: write user, password and host as in "
                "redis://user:password@host, and ssl_cert_reqs as required, optional or none; "
                "in REDIS_URL, too, where that is the broker"
            ) from None
    return urls


DatabaseUrl = Annotated[
    str,
    BeforeValidator(_without_driver),
    _url("postgresql", "postgres"),
    AfterValidator(_escaped),
    AfterValidator(_psycopg2),
]
RedisUrl = Annotated[str, _url("redis", "rediss")]
BrokerUrl = Annotated[
    str,
    _url("redis", "rediss", "amqp", "amqps", "pyamqp", several=True),
    AfterValidator(_for_kombu),
]


def _seconds(value: object) -> object:
    if value == "forever":
        return None
    duration = parse_duration(value) if isinstance(value, str) else None
    if duration is None or duration.total_seconds() < 60:
        raise ValueError(
            "must be a duration from a minute to 36500d, such as 12h, 7d or 4w, or forever"
        )
    return duration.total_seconds()


def _basic_auth(value: SecretStr) -> SecretStr:
    for credentials in value.get_secret_value().split(","):
        user, _, password = credentials.partition(":")
        if not user or len(password) < 8:
            raise ValueError("must be user:password, with a password of 8 characters or more")
    return value


BasicAuth = Annotated[SecretStr, AfterValidator(_basic_auth)]
Retained = Annotated[float | None, BeforeValidator(_seconds)]
Listen = Annotated[str, AfterValidator(_host_and_port)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Settings(BaseSettings):
    """The settings in force; each field is an environment variable: its alias, or its own name."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    database_url: DatabaseUrl = "postgresql+psycopg2://localhost/cos_events"
    """The PostgreSQL that the application commits to: outbox, ledger and L1 live in it."""
    redis_url: RedisUrl = "redis://localhost:6379/0"
    """The Redis whose channels carry the live feed."""
    broker_url: BrokerUrl = Field(
        default_factory=lambda given: given["redis_url"], validate_default=True
    )
    """The broker of the Celery workers, RabbitMQ or Redis; `REDIS_URL` when not set."""
    environment: Literal["development", "production"] = Field(
        default="development", alias="COS_EVENTS_ENVIRONMENT"
    )
    """Which kind of deployment this is: in production, `/debug` is closed without a token."""
    module: Name = Field(default="cc", alias="COS_EVENTS_MODULE")
    """The source module of the events that this process records."""
    max_payload_bytes: int = Field(
        default=262_144, ge=1_024, le=16_777_216, alias="COS_EVENTS_MAX_PAYLOAD_BYTES"
    )
    """The largest envelope that is recorded, in bytes of its JSON."""
    wake_interval: float = Field(default=0.003, ge=0, le=1, alias="COS_EVENTS_WAKE_INTERVAL")
    """Seconds from one wake-up that a process sends to its next; its commits meanwhile share it.
    After a pause two may go at once."""
    relay_interval: Seconds = Field(default=1.0, alias="COS_EVENTS_RELAY_INTERVAL")
    """Seconds between two sweeps of a publisher for rows whose wake-up was lost."""
    redeliver_after: Seconds = Field(default=60.0, alias="COS_EVENTS_REDELIVER_AFTER")
    """Seconds after which a published event is sent again to a subscription that has not received
    it; must be longer than a handler takes for all the messages its process has prefetched."""
    queue_depth: int = Field(default=10_000, ge=1_000, le=1_000_000, alias="COS_EVENTS_QUEUE_DEPTH")
    """The most messages that wait in a subscription's queue; more wait in PostgreSQL."""
    retain_for: Retained = Field(default="7d", validate_default=True, alias="COS_EVENTS_RETAIN_FOR")
    """Seconds after which an event that every subscription has received is dropped; None to keep
    all."""
    trace_content: bool = Field(default=False, alias="COS_EVENTS_TRACE_CONTENT")
    """Whether spans hold envelopes, error texts and SQL, and with them the text of prompts."""
    metrics_listen: Listen | None = Field(default=None, alias="COS_EVENTS_METRICS_LISTEN")
    """Where a worker, and the API, serve Prometheus, as `host:port`; nowhere by default."""
    wire_timeout: Seconds = Field(default=2.0, alias="COS_EVENTS_WIRE_TIMEOUT")
    """Seconds after which a frozen Redis or RabbitMQ counts as down."""
    api_host: str = Field(default="127.0.0.1", alias="COS_EVENTS_API_HOST")
    """Where the HTTP API listens."""
    api_port: int = Field(default=8000, ge=0, le=65_535, alias="COS_EVENTS_API_PORT")
    """On which port; 0 for a free one."""
    debug_token: SecretStr | None = Field(
        default=None, min_length=16, alias="COS_EVENTS_DEBUG_TOKEN"
    )
    """Opens `/debug` and `/metrics` to whoever sends it as a bearer token."""
    flower_address: str = "127.0.0.1"
    """Where Flower listens; this and the next two are variables of Flower's own."""
    flower_port: int = Field(default=5555, ge=0, le=65_535)
    """On which port; 0 for a free one."""
    flower_basic_auth: BasicAuth | None = None
    """Who may see Flower, as `user:password`; several are separated by commas."""
    redis_max_connections: int = Field(default=20, ge=1, le=10_000)
    """The most connections in the pool of `get_redis_client()`."""
    redis_socket_connect_timeout: Seconds = 5.0
    """Seconds that it waits for a connection to Redis."""
    redis_socket_keepalive: bool = True
    """Whether its connections use TCP keepalive."""
    redis_retry_on_timeout: bool = True
    """Whether it tries a command that timed out once more."""
    redis_decode_responses: bool = True
    """Whether it returns text instead of bytes."""
    redis_health_check_interval: float = Field(default=30.0, ge=0, le=3600)
    """Seconds of silence after which a connection is checked before its next use; 0: never."""


@cache
def get_settings() -> Settings:
    """The settings of this process, read once; `get_settings.cache_clear()` reads them again.

    Raises:
        ConfigurationError: names every wrong variable, its value (secrets masked, of a URL only
            the scheme) and what is allowed.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [
            _explain(each) for each in problems if each["type"] != "default_factory_not_called"
        ]
        raise ConfigurationError("invalid settings:\n  " + "\n  ".join(lines)) from None


_SECRETS = {"COS_EVENTS_DEBUG_TOKEN", "FLOWER_BASIC_AUTH"}


def _explain(problem: Any) -> str:
    name = str(problem["loc"][0]).upper()
    show = outline if name.endswith("_URL") else mask
    value = "***" if name in _SECRETS else show(str(problem["input"]))
    return f"{name}={value!r}: {problem['msg'].removeprefix('Value error, ')}"
