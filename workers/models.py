"""The tables that COS's own subscribers write, in schema `cos_l2`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, MetaData, Text, func
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cos_events.store.models import Base as StoreBase


class Base(DeclarativeBase):
    """All times are aware and in UTC."""

    metadata = MetaData(schema="cos_l2", naming_convention=StoreBase.metadata.naming_convention)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way of declaring it
        str: Text,
        int: BigInteger,
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSONB,
    }


class Activity(Base):
    """How many events of a type a module recorded in an hour."""

    __tablename__ = "activity"

    source_module: Mapped[str] = mapped_column(primary_key=True)
    event_type: Mapped[str] = mapped_column(primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    events: Mapped[int]


class GraphNode(Base):
    """A node for the graph loader: an event, a request, a component or a model."""

    __tablename__ = "graph_node"

    id: Mapped[str] = mapped_column(primary_key=True)
    """`<kind>:<key>`."""
    kind: Mapped[str]
    properties: Mapped[dict[str, Any]]
    staged_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class GraphEdge(Base):
    """An edge for the graph loader, from node to node."""

    __tablename__ = "graph_edge"

    source: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    target: Mapped[str] = mapped_column(primary_key=True)
    staged_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
