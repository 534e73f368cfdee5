"""The tables of schema `cos_events`; nothing else keeps the promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, get_args
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    MetaData,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "cos_events"

DeliveryState = Literal["held", "retrying", "delivered", "dead", "discarded"]
"""`held`: its copy waits here, not on the broker. `retrying`: a copy is on the broker and will run,
for the first time or again. `delivered`: had its effect. `dead`: waits for a person.
`discarded`: a person has purged it; it never runs."""

STILL_TO_RUN: tuple[DeliveryState, ...] = ("held", "retrying")
"""The states of what runs once it is due."""

UNFINISHED: tuple[DeliveryState, ...] = (*STILL_TO_RUN, "dead")
"""The states in which somebody still has to do something; an index has these few rows."""

AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)
"""As `next_attempt_at` of a held delivery: due as soon as its queue has room, in outbox order."""


class Base(DeclarativeBase):
    """Constraint names are spelled out, so that migrations can name what they change."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        },
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way of declaring it
        str: Text,
        datetime: TIMESTAMP(timezone=True),
        DeliveryState: Text,
        list[str]: ARRAY(Text),
    }


Companion = tuple[Table, Mapping[str, Any]]
"""A row of another table, and its columns' values, that an event is recorded with."""


class OutboxRow(Base):
    """One recorded event: the promise that it goes out once its transaction committed.

    Parameters:
        companions: rows that are written with it, by `writing`; what one refers to stands before
            it. None for one that SQLAlchemy's unit of work inserts as any other.
        columns: its own.
    """

    # Defaults are evaluated in the order of the columns: the transaction has its number before the
    # row has its id. The relay's watermark relies on it.
    __tablename__ = "outbox"
    __table_args__ = (
        Index("ix_outbox_unpublished", "id", postgresql_where=text("published_at IS NULL")),
    )

    transaction_id: Mapped[int] = mapped_column(
        BigInteger, server_default=text("pg_current_xact_id()::text::bigint"), deferred=True
    )
    """PostgreSQL's number for the transaction that recorded it."""
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    """Order of recording; a transaction may commit after one with higher ids."""
    event_id: Mapped[UUID] = mapped_column(unique=True)
    """The envelope's `base_log_id`."""
    source_module: Mapped[str]
    event_type: Mapped[str]
    envelope: Mapped[str]
    """The JSON text as it travels: encoded once, when it was recorded."""
    traceparent: Mapped[str | None]
    """W3C trace context of the recording, for a message header; null if nothing was traced."""
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    published_at: Mapped[datetime | None]

    def __init__(self, companions: Sequence[Companion] | None = None, **columns: Any) -> None:
        super().__init__(**columns)
        self._companions = companions

    @property
    def companions(self) -> Sequence[Companion] | None:
        """As given; None too where SQLAlchemy made the instance."""
        found: Sequence[Companion] | None = self.__dict__.get("_companions")
        return found


class SubscriptionRow(Base):
    """Who wants which events; written by the workers that know the code."""

    __tablename__ = "subscription"

    name: Mapped[str] = mapped_column(primary_key=True)
    """Also the name of its queue and of its task."""
    modules: Mapped[list[str] | None]
    """Source modules; null means all, today's and tomorrow's."""
    event_types: Mapped[list[str] | None]
    """Event types; null means all."""
    starts_after: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """It is owed the events whose outbox id is higher."""
    settled_through: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """The relay's watermark: each event that it is owed up to this id has a delivery row."""
    backfill_until: Mapped[int | None] = mapped_column(BigInteger)
    """While history is handed over: its last outbox id; the watermark is how far that has come."""
    holding: Mapped[bool] = mapped_column(server_default=text("false"))
    """Its queue is at its depth: new copies wait here, in order, and follow as it drains."""
    holds: Mapped[int] = mapped_column(server_default=text("0"))
    """How often it started holding: it tells publishers that bindings have changed meanwhile."""
    paused_until: Mapped[datetime | None]
    """Its handler is not called before this; then one event probes. Null: not paused."""
    paused_because: Mapped[str | None]
    probes: Mapped[int] = mapped_column(server_default=text("0"))
    """How many probes have failed since it was paused."""
    probing_until: Mapped[datetime | None]
    """A probe is on its way, and no other one follows before."""
    keyed_through: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """For one with an order: each event up to this id that had been committed has its key."""
    keyed_xmin: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Events up to `keyed_through` that were committed only later are of no earlier transaction."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class DeliveryRow(Base):
    """What became of one event at one subscription; no row: not received yet."""

    __tablename__ = "delivery"
    __table_args__ = (
        CheckConstraint(
            f"state IN ({', '.join(repr(state) for state in get_args(DeliveryState))})",
            name="state",
        ),
        Index(
            "ix_delivery_unfinished",
            "subscription",
            "state",
            postgresql_where=text("state IN ('held', 'retrying', 'dead')"),
        ),
        Index(
            "ix_delivery_held",
            "subscription",
            "next_attempt_at",
            "outbox_id",
            postgresql_where=text("state = 'held'"),
        ),
        Index(
            "ix_delivery_order",
            "subscription",
            "order_key",
            "outbox_id",
            postgresql_where=text("state IN ('held', 'retrying')"),
        ),
    )

    # No foreign key to subscription: all inserts would lock that one row at the same time.
    subscription: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    outbox_id: Mapped[int] = mapped_column(BigInteger)
    """The event's place in the order of recording."""
    state: Mapped[DeliveryState]
    attempts: Mapped[int]
    """How often the handler ran for it."""
    deaths: Mapped[int] = mapped_column(server_default=text("0"))
    """How many of the processes that ran it died while doing so."""
    generation: Mapped[int] = mapped_column(server_default=text("0"))
    """How often it was run again on purpose (`cos-events replay`)."""
    order_key: Mapped[str | None]
    """Events with the same key run one after another; null: not known yet, or no order."""
    correction: Mapped[str | None]
    """The envelope that a person sent instead of the recorded one; see `cos-events dlq replay`."""
    next_attempt_at: Mapped[datetime | None]
    """When `held` or `retrying`: the earliest next run."""
    error: Mapped[str | None]
    """Of the last failure: the exception's type and text."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    updated_at: Mapped[datetime] = mapped_column(
        server_default=func.clock_timestamp(), onupdate=func.clock_timestamp()
    )


class RetentionRow(Base):
    """One row: what has been dropped from the outbox."""

    __tablename__ = "retention"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    dropped_before: Mapped[datetime | None]
    """Events recorded earlier may have been dropped; null: none was."""
