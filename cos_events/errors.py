"""The errors of cos-events: one hierarchy, each sentence saying what to do."""


class CosEventsError(Exception):
    """Base of every error that cos-events raises on purpose.

    The command line prints its text as one sentence and exits with 1; a traceback means a bug.
    """


class ConfigurationError(CosEventsError):
    """A setting is missing or wrong; the text names the variable and what is allowed."""


class InvalidEnvelope(CosEventsError):
    """Bytes that are not an envelope; the text names the field and what is wrong with it."""


class InvalidPayload(CosEventsError, ValueError):
    """Data that cannot be recorded as an event; the text names the field. Nothing was written."""


class BroadcastError(CosEventsError):
    """The broker did not take a batch: the rows stay in the outbox and wait, nothing is lost."""


class BrokerAway(BroadcastError):
    """The broker does not answer, or refuses; the text says where it was looked for.

    Attributes:
        why: in the words of its client.
    """

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"the broker at {url} cannot be used: {why}")
        self.why = why


class SubscriptionError(CosEventsError):
    """A subscription is declared incorrectly, or one was named that does not exist."""


class EmbeddedServerError(CosEventsError):
    """A private PostgreSQL or Valkey could not be started or stopped; the text says what to do."""


class SchemaMissing(CosEventsError):
    """The database has no cos-events tables, or old ones: run `cos-events db upgrade`."""


class Rejected(CosEventsError):
    """Raised by a handler for what can never succeed: a dead letter at once, without retries."""


class Unsuccessful(CosEventsError):
    """The handler failed without an exception of its own; the text says how."""


class DeliveryFailed(CosEventsError):
    """What Celery is told about a failed attempt, for its log, its signals and Flower.

    Its text says what the ledger says; the handler's own error may quote values from the database.
    """


class DatabaseAway(CosEventsError):
    """PostgreSQL cannot be reached; the text says where it was looked for."""
