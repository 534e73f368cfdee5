"""The command `cos-events api`."""

from __future__ import annotations

import logging

import click

from cos_events.cli.port import usable_port
from cos_events.cli.servers import adopt_running

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"


@click.command("api")
@click.option("--host", help="Address to listen on.  [default: COS_EVENTS_API_HOST, 127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="Port to listen on; 0 picks a free one.  [default: COS_EVENTS_API_PORT, 8000]",
)
def command(host: str | None, port: int | None) -> None:
    """Serve the HTTP API until Ctrl-C.

    \b
    GET  /health/live, /health/ready   for whoever runs it
    POST /debug/test-log               write a record and see it travel
    GET  /debug/redis-health           the live feed's Redis
    GET  /debug/messages               the newest messages of the live feed
    GET  /metrics                      for Prometheus

    /debug and /metrics are open on this machine in development; elsewhere only with
    COS_EVENTS_DEBUG_TOKEN. COS_EVENTS_METRICS_LISTEN serves Prometheus on a separate port.
    """  # noqa: D301 - the mark of click for lines that stay
    from cos_events import metrics, telemetry
    from cos_events.context import RequestIdFilter
    from cos_events.errors import CosEventsError
    from cos_events.parent import end_with_parent, has_parent
    from cos_events.settings import get_settings

    adopt_running()
    try:
        import uvicorn

        from cos_events.api import create_app
    except ImportError as error:
        raise CosEventsError(f"{error.name} is missing: pip install 'cos-events[api]'") from error
    end_with_parent()
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, handlers=[handler])
    telemetry.configure("api")
    settings = get_settings()
    if settings.metrics_listen and not has_parent():
        metrics.serve(settings.metrics_listen)
    host = host or settings.api_host
    uvicorn.run(
        create_app(),
        host=host,
        port=usable_port("COS_EVENTS_API_PORT", host, settings.api_port, port),
        log_config=None,
        server_header=False,
    )
