"""The command `cos-events faults`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from cos_events.cli.interrupt import cleaning_up
from cos_events.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from cos_events.faults.report import Happened, Report


@click.command("faults")
@click.option(
    "--broker",
    type=click.Choice(["redis", "rabbitmq"]),
    default="redis",
    show_default=True,
    help="Which broker carries the events; rabbitmq needs the system's rabbitmq-server.",
)
@click.option(
    "--events",
    default=5_000,
    show_default=True,
    type=click.IntRange(100, 10_000_000),
    help="How many events are committed, at least.",
)
@click.option(
    "--seed", type=int, help="Decides what happens when.  [default: chosen at random, and printed]"
)
@click.option(
    "--faults",
    "count",
    type=click.IntRange(0, 100_000),
    help="How many faults.  [default: each kind once, or one in 500 events if that is more]",
)
@click.option(
    "--kind",
    "only",
    multiple=True,
    metavar="NAME",
    help="Only this kind of fault, such as broker.freeze; may be repeated.",
)
@click.option(
    "--rate",
    type=click.FloatRange(1, 10_000),
    help="Events per second.  [default: chosen so that faults are some seconds apart]",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="A new folder for data and logs, which is kept.  [default: a temporary one]",
)
@json_option
def command(  # noqa: PLR0913, PLR0917 - its options
    broker: Any,
    events: int,
    seed: int | None,
    count: int | None,
    only: tuple[str, ...],
    rate: float | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Prove that nothing is lost: break everything while events are committed, then count.

    Starts its own private servers and workers. While an application commits, it kills (-9)
    application, publishers, subscribers and children of their pools, including at each step of an
    event's way; freezes, restarts, empties and cuts off Redis and the broker; restarts PostgreSQL.
    Then it repairs everything, waits, and compares what was committed with what each subscription
    did.

    \b
    missing         committed events that a subscription has not received
    double effects  events that had two effects where exactly one is promised

    The seed decides which faults come, and after how many committed events. Exits with 0 if nothing
    is missing or duplicated, and nothing rolled back was delivered; otherwise with 1.
    """  # noqa: D301 - the mark of click for lines that stay
    from cos_events.embedded import own_folder
    from cos_events.faults.kinds import kinds_on
    from cos_events.faults.run import FaultRun
    from cos_events.faults.schedule import faults_for, plan, rate_for

    kinds = {name: kind.seconds for name, kind in kinds_on(broker).items()}
    if unknown := set(only) - kinds.keys():
        raise click.UsageError(
            f"no kind of fault with {broker}: {', '.join(sorted(unknown))}; "
            f"there are: {', '.join(sorted(kinds))}"
        )
    kinds = {name: seconds for name, seconds in kinds.items() if not only or name in only}
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    count = faults_for(events, len(kinds)) if count is None else count
    repeat = ["cos-events", "faults", "--broker", broker, "--events", str(events)]
    repeat += ["--rate", f"{rate:g}"] if rate else []
    repeat += ["--seed", str(seed), "--faults", str(count)]
    repeat += [word for name in only for word in ("--kind", name)]
    with cleaning_up(), own_folder(folder) as home, _Display(as_json=as_json) as display:
        display.say(f"{' '.join(repeat)}\n")
        report = FaultRun(
            home.path,
            broker,
            events=events,
            rate=rate or rate_for(events, count),
            seed=seed,
            faults=plan(seed, events, kinds, count),
            on_progress=display.progress,
            on_fault=display.fault,
        ).run()
        home.stays = home.stays or not report.ok
    never = sorted(set(kinds) - {kind for kind, times in report.kinds().items() if times})
    if as_json:
        asked = {"broker": broker, "events": events, "seed": seed, "repeat": " ".join(repeat)}
        print_json({**asked, **report.as_dict(), "kinds_not_hit": never})
    else:
        _print(report, len(kinds), never)
        click.echo(f"repeat            {' '.join(repeat)}")
    if not report.ok:
        click.echo(f"data and logs stay in {home.path}", err=True)
        raise SystemExit(1)


class _Display:
    """A progress bar, and a line for each fault that is over."""

    def __init__(self, *, as_json: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self._lines = not as_json
        self._progress = Progress(console=console, transient=True)
        self._bar = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print a line for people, above the bar."""
        if self._lines:
            self._progress.console.print(line, markup=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar."""
        self._progress.update(self._bar, description=what, completed=done, total=total)

    def fault(self, happened: Happened) -> None:
        """Print what happened."""
        self.say(
            f"{happened.began:7.1f} s  {happened.committed:>9,}  {happened.kind:<30} "
            f"{happened.hit or 'hit nobody':<26} {happened.seconds:5.1f} s  {happened.events:>6,}"
        )


def _print(report: Report, kinds: int, never: list[str]) -> None:
    found = report.as_dict()
    print_table(
        ["subscription", "promise", "committed", "delivered", "missing", "twice or more"],
        [
            [
                each.subscription,
                "exactly once" if each.exactly_once else "at least once",
                each.committed,
                each.delivered,
                each.missing,
                each.repeated,
            ]
            for each in report.accounts
        ],
    )
    outcomes = ", ".join(f"{number:,} {name}" for name, number in report.outcomes().items())
    click.echo(f"\ntransactions      {outcomes}")
    click.echo(
        f"longest commit    {found['longest_commit_ms']} ms (99 % within {found['commit_p99_ms']} "
        f"ms), not counting the {found['postgresql_away_seconds']} s that PostgreSQL was down"
    )
    click.echo(
        f"faults            {len(report.happened):,}, {found['events_per_fault']} events per "
        "fault; "
        f"{kinds - len(never)} of {kinds} kinds have hit; "
        f"{report.restarts:,} processes started again"
    )
    for process in report.ended:
        click.echo(f"ended by itself   {process}")
    if never:
        click.echo(f"not hit           {', '.join(never)}")
    click.echo(f"settled           {found['settled_after_seconds']} s after the last commit")
    for sentence in report.unsettled:
        click.echo(f"not settled       {sentence}")
    if report.dead or report.lost_by_postgres:
        click.echo(f"dead letters      {report.dead:,}")
        click.echo(f"lost by PostgreSQL {report.lost_by_postgres:,}")
    click.echo(f"missing           {report.missing:,}")
    click.echo(f"double effects    {report.double_effects:,}")
    click.echo(f"rolled back but delivered {report.undone_delivered:,}")
