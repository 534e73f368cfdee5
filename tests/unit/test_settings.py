"""All configuration: from the environment, validated as a whole, secrets never shown."""

import os
from collections.abc import Callable, Iterator

import pytest

from cos_events.errors import ConfigurationError
from cos_events.settings import Settings, get_settings, mask

DEFAULTS = {
    "database_url": "postgresql+psycopg2://localhost/cos_events",
    "redis_url": "redis://localhost:6379/0",
    "broker_url": "redis://localhost:6379/0",
    "environment": "development",
    "module": "cc",
    "max_payload_bytes": 262_144,
    "redis_max_connections": 20,
    "redis_socket_connect_timeout": 5.0,
    "redis_socket_keepalive": True,
    "redis_retry_on_timeout": True,
    "redis_decode_responses": True,
    "redis_health_check_interval": 30.0,
}


@pytest.fixture
def settings(monkeypatch, tmp_path) -> Iterator[Callable[..., Settings]]:
    """Read the settings from these variables alone."""
    for name in list(os.environ):
        if name.upper() in (field.upper() for field in Settings.model_fields) or name.startswith(
            "COS_EVENTS_"
        ):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def read(**variables: str) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        return get_settings()

    yield read
    get_settings.cache_clear()


def test_everything_has_a_default(settings) -> None:
    read = settings()
    assert {name: getattr(read, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("REDIS_URL", "rediss://h/3", "redis_url", "rediss://h/3"),
        ("REDIS_MAX_CONNECTIONS", "7", "redis_max_connections", 7),
        ("REDIS_SOCKET_CONNECT_TIMEOUT", "1.5", "redis_socket_connect_timeout", 1.5),
        ("REDIS_SOCKET_KEEPALIVE", "false", "redis_socket_keepalive", False),
        ("REDIS_RETRY_ON_TIMEOUT", "0", "redis_retry_on_timeout", False),
        ("REDIS_DECODE_RESPONSES", "no", "redis_decode_responses", False),
        ("REDIS_HEALTH_CHECK_INTERVAL", "0", "redis_health_check_interval", 0.0),
        ("DATABASE_URL", "postgresql://h/d", "database_url", "postgresql+psycopg2://h/d"),
        ("BROKER_URL", "amqp://u:p@h//", "broker_url", "amqp://u:p@h//"),
        ("BROKER_URL", "amqp://h:1;amqp://g:2", "broker_url", "amqp://h:1;amqp://g:2"),
        ("COS_EVENTS_ENVIRONMENT", "production", "environment", "production"),
        ("COS_EVENTS_MODULE", "pem", "module", "pem"),
        ("COS_EVENTS_MAX_PAYLOAD_BYTES", "2048", "max_payload_bytes", 2048),
        ("COS_EVENTS_WAKE_INTERVAL", "0", "wake_interval", 0.0),
        ("COS_EVENTS_RELAY_INTERVAL", "0.25", "relay_interval", 0.25),
        ("COS_EVENTS_WIRE_TIMEOUT", "9", "wire_timeout", 9.0),
    ],
)
def test_each_variable_sets_its_field(settings, variable, text, field, value) -> None:
    assert getattr(settings(**{variable: text}), field) == value


def test_an_empty_variable_counts_as_not_set(settings) -> None:
    assert settings(REDIS_MAX_CONNECTIONS="", REDIS_URL="").redis_max_connections == 20


@pytest.mark.parametrize(
    ("variable", "field"), [("ENVIRONMENT", "environment"), ("MODULE", "module")]
)
def test_a_variable_of_another_program_is_left_alone(settings, variable, field) -> None:
    assert getattr(settings(**{variable: "staging"}), field) == DEFAULTS[field]


def test_the_broker_is_redis_unless_one_is_named(settings) -> None:
    assert settings(REDIS_URL="redis://elsewhere/1").broker_url == "redis://elsewhere/1"
    named = settings(REDIS_URL="redis://elsewhere/1", BROKER_URL="amqp://rabbit//")
    assert named.broker_url == "amqp://rabbit//"


@pytest.mark.parametrize(
    "scheme",
    ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg", "postgresql+asyncpg"],
)
def test_every_spelling_of_a_database_url_names_the_driver(settings, scheme) -> None:
    read = settings(DATABASE_URL=f"{scheme}://u:p@h:5433/d?sslmode=require")
    assert read.database_url == "postgresql+psycopg2://u:p@h:5433/d?sslmode=require"


def test_settings_are_read_once(settings) -> None:
    first = settings(COS_EVENTS_MODULE="pem")
    os.environ["COS_EVENTS_MODULE"] = "aic"
    assert get_settings() is first


def test_all_wrong_values_are_named_at_once_and_secrets_are_masked(settings) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings(
            DATABASE_URL="mysql://app:hunter2@h/d",
            REDIS_URL="http://:hunter3@h",
            BROKER_URL="kafka://app:hunter4@h",
            REDIS_MAX_CONNECTIONS="0",
            REDIS_SOCKET_KEEPALIVE="perhaps",
            REDIS_SOCKET_CONNECT_TIMEOUT="-1",
            COS_EVENTS_MODULE="C C",
            COS_EVENTS_ENVIRONMENT="staging",
            COS_EVENTS_MAX_PAYLOAD_BYTES="many",
            COS_EVENTS_METRICS_LISTEN="127.0.0.1:65536",
        )
    lines = str(refused.value).splitlines()
    assert lines[0] == "invalid settings:"
    assert sorted(line.strip().partition("=")[0] for line in lines[1:]) == [
        "BROKER_URL",
        "COS_EVENTS_ENVIRONMENT",
        "COS_EVENTS_MAX_PAYLOAD_BYTES",
        "COS_EVENTS_METRICS_LISTEN",
        "COS_EVENTS_MODULE",
        "DATABASE_URL",
        "REDIS_MAX_CONNECTIONS",
        "REDIS_SOCKET_CONNECT_TIMEOUT",
        "REDIS_SOCKET_KEEPALIVE",
        "REDIS_URL",
    ]
    assert "hunter" not in str(refused.value)
    assert "DATABASE_URL='mysql://…': must start with postgresql://" in str(refused.value)


def test_a_wrong_redis_url_is_not_blamed_on_the_broker(settings) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings(REDIS_URL="http://h")
    assert "BROKER_URL" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "url", "shown"),
    [
        # Without an @, nothing tells the password from a port.
        ("DATABASE_URL", "postgresql://cos:hunter2/db", "postgresql://…"),
        ("DATABASE_URL", "postgresql://cos:hunter2localhost/db", "postgresql://…"),
        ("DATABASE_URL", "host=h user=u password=hunter2", "…"),
        ("DATABASE_URL", "postgres//u:hunter2@h/d", "…"),
        ("DATABASE_URL", "u:hunter2@h/d", "…"),
        ("DATABASE_URL", "redis:u:hunter2@h", "…"),
        ("DATABASE_URL", "postgresql://h:99999x/db?user=u&%70assword=hunter2", "postgresql://…"),
        ("REDIS_URL", "redis://:hunter2:6379/0", "redis://…"),
        ("REDIS_URL", "redis://:hunter2/0", "redis://…"),
        ("BROKER_URL", "amqp://cos:hunter2//", "amqp://…"),
        ("BROKER_URL", "amqp://cos:hunter3@h//;amqp://u:hunter2", "amqp://…"),
        # Kombu takes no password among the options.
        ("BROKER_URL", "redis://h?password=hunter2", "redis://…"),
        ("BROKER_URL", "redis://h?pass%77ord=hunter2", "redis://…"),
        ("BROKER_URL", "rediss://h?ssl_cert_reqs=hunter2", "rediss://…"),
    ],
)
def test_of_a_url_that_is_refused_only_the_scheme_is_shown(settings, variable, url, shown) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings(**{variable: url})
    assert f"\n  {variable}='{shown}': " in str(refused.value)
    assert "hunter" not in str(refused.value)


def test_a_channel_that_kombu_cannot_read_is_refused_as_the_broker_that_it_is(settings) -> None:
    url = "redis://h?password=hunter2"
    with pytest.raises(ConfigurationError, match="BROKER_URL='redis://…'.*REDIS_URL") as refused:
        settings(REDIS_URL=url)
    assert "hunter2" not in str(refused.value)
    assert settings(REDIS_URL=url, BROKER_URL="amqp://h//").redis_url == url


def test_a_url_that_cannot_be_parsed_is_a_wrong_setting(settings) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL="):
        settings(DATABASE_URL="http://[::1")


def test_an_at_sign_within_the_password_of_a_database_is_refused_without_a_part_of_it(
    settings,
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings(DATABASE_URL="postgresql://app:hun@ter2@h/d")
    expected = "DATABASE_URL='postgresql://…': has an @ in its password: write that as"
    assert f"{expected} %40" in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("DATABASE_URL", "postgresql+psycopg2://app:hun%40ter2@h/d"),
        ("DATABASE_URL", "postgresql+psycopg2://app@server:hunter2@h/d@e?application_name=a@b"),
        ("DATABASE_URL", "postgresql+psycopg2:///d?host=/run/a@b"),
        # Their clients read it as it was meant.
        ("REDIS_URL", "redis://:hun@ter2@h/0"),
        ("BROKER_URL", "amqp://app:hun@ter2@h/v@w"),
        ("BROKER_URL", "amqp://app:hunter2@h//;amqp://app:hunter2@other//"),
    ],
)
def test_any_other_at_sign_may_stay(settings, variable, url) -> None:
    assert getattr(settings(**{variable: url}), variable.lower()) == url


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://app@h/0", "redis://app@h/0"),
        ("redis://:hunter2@h/0", "redis://:***@h/0"),
        ("amqp://app:hunter2@h:5672/v", "amqp://app:***@h:5672/v"),
        ("amqp://app:hunter2%40@h//", "amqp://app:***@h//"),
        ("redis://app:hunter2@[::1]:6379/0", "redis://app:***@[::1]:6379/0"),
        ("postgresql://app:hun@ter2@h/d", "postgresql://app:***@h/d"),
        # SQLAlchemy takes these, so they do reach logs.
        ("postgresql://app@server:hunter2@h/d", "postgresql://app@server:***@h/d"),
        ("postgresql://app:hun/ter2@h/d", "postgresql://app:***@h/d"),
        ("postgresql://app:hun#ter2@h/d", "postgresql://app:***@h/d"),
        ("postgresql://app:hun?ter2@h/d", "postgresql://app:***@h/d"),
    ],
)
def test_mask_hides_the_password_and_nothing_else(url, masked) -> None:
    assert mask(url) == masked


@pytest.mark.parametrize("name", ["password", "sslpassword", "PASSFILE", "%70assword"])
def test_mask_hides_a_password_among_the_options(name: str) -> None:
    masked = mask(f"postgresql://h/d?user=app&{name}=hunter2&sslmode=require")
    assert masked == f"postgresql://h/d?user=app&{name}=***&sslmode=require"


@pytest.mark.parametrize(
    ("text", "seconds"), [("7d", 604_800.0), ("12h", 43_200.0), ("forever", None)]
)
def test_how_long_events_are_retained_is_a_duration(
    text: str, seconds: float | None, environment: Callable[..., None]
) -> None:
    environment(COS_EVENTS_RETAIN_FOR=text)
    assert get_settings().retain_for == seconds


@pytest.mark.parametrize("text", ["7", "1s", "week", "-1d", "36501d"])
def test_what_is_no_such_duration_is_refused(text: str, environment: Callable[..., None]) -> None:
    environment(COS_EVENTS_RETAIN_FOR=text)
    with pytest.raises(ConfigurationError, match="must be a duration from a minute to 36500d"):
        get_settings()


def test_a_token_that_is_too_short_is_not_shown(environment: Callable[..., None]) -> None:
    environment(COS_EVENTS_DEBUG_TOKEN="hunter2")
    with pytest.raises(ConfigurationError, match="COS_EVENTS_DEBUG_TOKEN='\\*\\*\\*'") as error:
        get_settings()
    assert "hunter2" not in str(error.value)
