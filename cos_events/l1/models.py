"""The tables of schema `mem0_cc`."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Double, ForeignKey, Index, Integer, MetaData, Text, func
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from cos_events.store.models import Base as StoreBase

SCHEMA = "mem0_cc"


class Base(DeclarativeBase):
    """All times are aware and in UTC."""

    metadata = MetaData(schema=SCHEMA, naming_convention=StoreBase.metadata.naming_convention)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way of declaring it
        str: Text,
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSONB,
        int: Integer,
        float: Double,
    }


class BaseLog(Base):
    """One thing that happened; its content is a prompt trace or an event log."""

    __tablename__ = "base_log"
    __table_args__ = (Index("ix_base_log_occurred_at", "occurred_at"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    source_module: Mapped[str]
    event_type: Mapped[str]
    occurred_at: Mapped[datetime]
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    trace_id: Mapped[str]
    request_id: Mapped[str]

    prompt_trace: Mapped[PromptTrace | None] = relationship(back_populates="base_log")
    event_log: Mapped[EventLog | None] = relationship(back_populates="base_log")


class PromptTrace(Base):
    """What a model was asked, and what it answered."""

    __tablename__ = "prompt_trace"

    base_log_id: Mapped[UUID] = mapped_column(
        ForeignKey("base_log.id", ondelete="CASCADE"), primary_key=True
    )
    prompt: Mapped[str]
    response: Mapped[str]
    model: Mapped[str]
    tokens_in: Mapped[int] = mapped_column(BigInteger)
    tokens_out: Mapped[int] = mapped_column(BigInteger)
    latency_ms: Mapped[float]
    attributes: Mapped[dict[str, Any]]

    base_log: Mapped[BaseLog] = relationship(back_populates="prompt_trace")


class EventLog(Base):
    """A line of a log."""

    __tablename__ = "event_log"

    base_log_id: Mapped[UUID] = mapped_column(
        ForeignKey("base_log.id", ondelete="CASCADE"), primary_key=True
    )
    level: Mapped[str]
    component: Mapped[str]
    message: Mapped[str]
    attributes: Mapped[dict[str, Any]]

    base_log: Mapped[BaseLog] = relationship(back_populates="event_log")
