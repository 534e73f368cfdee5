"""What an L1 record says, by event type; also the `data` of its envelope."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

Count = Annotated[int, Field(ge=0, lt=2**63)]


class Content(BaseModel):
    """Base of both: fields that are not listed here become free attributes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    attributes: dict[str, JsonValue] = Field(default_factory=dict)
    """Whatever else there is to say, as JSON."""

    @model_validator(mode="before")
    @classmethod
    def _gather_attributes(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        free = {name: value for name, value in given.items() if name not in cls.model_fields}
        named = {name: value for name, value in given.items() if name in cls.model_fields}
        attributes = named.get("attributes", {})
        if free and isinstance(attributes, dict):
            named["attributes"] = {**free, **attributes}
        return named


class PromptTraceContent(Content):
    """What a model was asked, and what it answered."""

    prompt: str
    response: str
    model: str
    tokens_in: Count
    tokens_out: Count
    latency_ms: Annotated[float, Field(ge=0)]
    """Milliseconds from request to complete answer."""


class EventLogContent(Content):
    """A line of a log."""

    level: str
    component: str
    message: str
