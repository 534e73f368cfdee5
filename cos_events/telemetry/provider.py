"""The tracer provider of the bus's own processes: Logfire's, or plain OpenTelemetry's."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

from cos_events.settings import get_settings
from cos_events.telemetry.tracing import tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_TIMEOUTS = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
_OTLP = "opentelemetry.exporter.otlp.proto.http"

EXPORT_SECONDS = 5.0
"""How long a collector may take for a batch, retries included: a process waits for it when it ends.
The environment may say otherwise; OpenTelemetry's own default is ten."""


def configure(role: str) -> None:
    """Send this process's traces where the environment says; otherwise do nothing.

    To Logfire with a `LOGFIRE_TOKEN`, or the credentials that its commands leave in `.logfire`. To
    a collector, by OTLP over HTTP, with `OTEL_EXPORTER_OTLP_ENDPOINT` or
    `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`. To standard output with `OTEL_TRACES_EXPORTER=console`;
    `none` sends nothing. A tracer provider that the application has set stays.
    Calling it again is harmless.

    It starts threads, so call it after a fork, in the child, and not in a process that forks: a
    lock that one of them holds at that moment would never be released in the child.

    Args:
        role: what the process does, such as `worker`; the service is then `cos-events-worker`,
            unless `OTEL_SERVICE_NAME` names it.
    """
    if tracing():
        return
    service = os.environ.get("OTEL_SERVICE_NAME") or f"cos-events-{role}"
    match _whom():
        case "logfire":
            _use_logfire(service)
        case "collector":
            _use_opentelemetry(service, _to_collector())
        case "console":
            _use_opentelemetry(service, _to_console())


def load() -> None:
    """Import what `configure` needs, in the parent: a pool's child has four seconds to start."""
    match _whom():
        case "logfire":
            import_module("logfire")
        case "collector":
            import_module(f"{_OTLP}.trace_exporter")


def flush(timeout: float = 2.0) -> None:
    """Send what waits to be sent, for at most `timeout` seconds: this process ends."""
    if not tracing():
        return
    from opentelemetry import trace  # noqa: PLC0415 - an extra

    provider: Any = trace.get_tracer_provider()
    if hasattr(provider, "force_flush"):
        # It ignores its timeout: a silent collector would hold us up for as long as the exporter's.
        sending = Thread(target=provider.force_flush, args=(int(timeout * 1000),), daemon=True)
        sending.start()
        sending.join(timeout)


def _whom() -> Literal["logfire", "collector", "console"] | None:
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    folder = Path(os.environ.get("LOGFIRE_CREDENTIALS_DIR") or ".logfire")
    token = os.environ.get("LOGFIRE_TOKEN") or (folder / "logfire_credentials.json").exists()
    if token and _is_installed("logfire"):
        return "logfire"
    chosen = os.environ.get("OTEL_TRACES_EXPORTER")
    if chosen == "none":
        return None
    if chosen == "console" and _is_installed("opentelemetry.sdk"):
        return "console"
    if any(os.environ.get(name) for name in _ENDPOINTS) and _is_installed(_OTLP):
        return "collector"
    return None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _use_logfire(service: str) -> None:
    import logfire  # noqa: PLC0415 - an extra

    logfire.configure(
        send_to_logfire="if-token-present",
        service_name=service,
        service_version=version("cos-events"),
        environment=get_settings().environment,
        console=False,
        metrics=False,  # they are Prometheus's
        inspect_arguments=False,
        distributed_tracing=True,
    )


def _to_collector() -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - an extra
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    bounded = any(os.environ.get(name) for name in _TIMEOUTS)
    return BatchSpanProcessor(OTLPSpanExporter(timeout=None if bounded else EXPORT_SECONDS))


def _to_console() -> SpanProcessor:
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415 - an extra
        ConsoleSpanExporter,
        SimpleSpanProcessor,
    )

    return SimpleSpanProcessor(ConsoleSpanExporter())


def _use_opentelemetry(service: str, processor: SpanProcessor) -> None:
    from opentelemetry import trace  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

    resource = Resource.create(
        {
            "service.name": service,
            "service.version": version("cos-events"),
            "deployment.environment.name": get_settings().environment,
        }
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
