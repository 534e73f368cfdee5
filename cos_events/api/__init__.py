"""The HTTP API: health for whoever runs the bus, and a look inside for whoever builds on it.

Needs the extra `api`: `pip install 'cos-events[api]'`, then `cos-events api`.
"""

from cos_events.api.application import create_app
from cos_events.api.request_id import RequestIdMiddleware

__all__ = ["RequestIdMiddleware", "create_app"]
