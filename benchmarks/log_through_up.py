"""`POST /debug/test-log` through a running `cos-events up`: Redis well, frozen, and stopped.

    python benchmarks/log_through_up.py --requests 100

On private servers, one Valkey for channel and broker. Prints for each state how many answers were
200, how many of them seen on the channel, the milliseconds from the commit to the channel and of
the whole request; at the end whether all that was committed has been delivered.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from cos_events.cli.processes import Spec, running
from cos_events.cli.servers import use
from cos_events.embedded import EmbeddedPostgres, EmbeddedValkey, own_folder
from cos_events.embedded.process import free_port, frozen


def show(state: str, client: httpx.Client, requests: int) -> None:
    """Send these one after another, and print what came."""
    answers: list[dict[str, Any]] = []
    spent: list[float] = []
    for _ in range(requests):
        begun = time.perf_counter()
        answer = client.post("/debug/test-log", json={})
        spent.append(1000 * (time.perf_counter() - begun))
        answers.append({"status": answer.status_code, **answer.json()})
    ok = sum(each["status"] == 200 for each in answers)
    seen = [each["seen_after_ms"] for each in answers if each.get("published")]
    channel = (
        f", to the channel median {median(seen):.1f}, worst {max(seen):.1f} ms" if seen else ""
    )
    print(
        f"{state:8} {ok} of {requests} answered 200, {len(seen)} published"
        f"{channel}; requests median {median(spent):.0f}, worst {max(spent):.0f} ms",
        flush=True,
    )


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100)
    requests = parser.parse_args().requests
    with own_folder() as home, ExitStack() as endings:
        folder = home.path
        postgres = EmbeddedPostgres(folder / "postgres", secrets.token_urlsafe(16))
        valkey = EmbeddedValkey(folder / "valkey", secrets.token_urlsafe(16))
        for server in (postgres, valkey):
            endings.callback(server.stop)
            server.start()
        use(database_url=postgres.url, redis_url=valkey.url, broker_url=valkey.url)
        port = free_port()
        os.environ |= {"COS_EVENTS_API_PORT": str(port), "FLOWER_PORT": str(free_port())}
        up = ["cos_events", "up", "--data", str(folder / "home")]
        endings.enter_context(running(folder, [Spec("up", up, b"\nready; ")]))
        client = endings.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        )
        client.post("/debug/test-log", json={"wait": 5})
        show("well", client, requests)
        with frozen(valkey.pid):
            show("frozen", client, requests // 5)
        valkey.stop()
        show("stopped", client, requests // 5)
        valkey.start()
        subprocess.run([sys.executable, "-m", "cos_events", "verify", "--wait", "150"], check=False)


if __name__ == "__main__":
    main()
