"""L1, the structured memory of COS: what happened, in schema `mem0_cc`."""

from cos_events.l1.content import EventLogContent, PromptTraceContent
from cos_events.l1.log import log_l1
from cos_events.l1.models import BaseLog, EventLog, PromptTrace

__all__ = [
    "BaseLog",
    "EventLog",
    "EventLogContent",
    "PromptTrace",
    "PromptTraceContent",
    "log_l1",
]
