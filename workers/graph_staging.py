"""Subscription `graph_staging`: turns events into nodes and edges, ready for a graph loader."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from cos_events import BaseSubscriber, Envelope, subscriber
from workers.models import GraphEdge, GraphNode


@subscriber("graph_staging", batch_size=100, batch_timeout=0.2)
class GraphStaging(BaseSubscriber):
    """Writes what a batch of events adds to the graph; staging it again changes nothing."""

    def process_batch(self, messages: list[Envelope], session: Session) -> bool:
        """Stage the nodes and edges of these events."""
        nodes: dict[str, dict[str, Any]] = {}
        edges: dict[tuple[str, str, str], dict[str, Any]] = {}
        for message in messages:
            event = _node(nodes, "event", str(message.base_log_id), _properties(message))
            for kind, target in _neighbours(nodes, message):
                edges[event, kind, target] = {"source": event, "kind": kind, "target": target}
        session.execute(
            insert(GraphNode).on_conflict_do_nothing(), [nodes[key] for key in sorted(nodes)]
        )
        if edges:
            session.execute(
                insert(GraphEdge).on_conflict_do_nothing(), [edges[key] for key in sorted(edges)]
            )
        return True


def _node(nodes: dict[str, dict[str, Any]], kind: str, key: str, properties: dict[str, Any]) -> str:
    name = f"{kind}:{key}"
    nodes[name] = {"id": name, "kind": kind, "properties": properties}
    return name


def _properties(message: Envelope) -> dict[str, Any]:
    return {
        "module": message.source_module,
        "event_type": message.event_type,
        "timestamp": message.timestamp.isoformat(),
    }


def _neighbours(nodes: dict[str, dict[str, Any]], message: Envelope) -> list[tuple[str, str]]:
    found = []
    if message.request_id:
        found.append(("caused_by", _node(nodes, "request", message.request_id, {})))
    for field, edge in (("component", "from_component"), ("model", "answered_by")):
        if isinstance(value := message.data.get(field), str):
            found.append((edge, _node(nodes, field, value, {})))
    return found
