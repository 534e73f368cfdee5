"""What a call takes, over many rounds."""

from __future__ import annotations

from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture


def measure(benchmark: BenchmarkFixture, rounds: int, call: Callable[[], object]) -> list[float]:
    """Milliseconds of each round, after fifty to warm up."""
    benchmark.pedantic(call, rounds=rounds, warmup_rounds=50)
    assert benchmark.stats
    return [1000 * each for each in benchmark.stats.stats.data]
