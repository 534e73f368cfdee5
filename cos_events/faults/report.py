"""What a fault run found."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from cos_events.faults.books import Books
from cos_events.faults.truth import Transaction


@dataclass
class Happened:
    """A fault that was begun.

    Attributes:
        kind: its name.
        planned_at: how many events were to be committed when it began.
        committed: how many were.
        began: seconds since the run began.
        seconds: how long it lasted; for a kill, until what it killed was back.
        events: how many were committed meanwhile.
        hit: whom or what it hit; None if nobody.
    """

    kind: str
    planned_at: int
    committed: int
    began: float
    seconds: float | None = None
    events: int = 0
    hit: str | None = None


@dataclass(frozen=True)
class Report:
    """What a run did and found.

    Attributes:
        transactions: of the application, with outcomes and times.
        happened: the faults, in order.
        accounts: each subscription's books.
        dead: events among the dead letters.
        lost_by_postgres: events whose commit returned and which PostgreSQL does not have.
        postgres_away: from when to when, in seconds since the epoch.
        restarts: how often a process was started again.
        ended: processes that ended though nothing killed them, each with the last line of its log.
        reached: the kill points that any process came to.
        settled_after: seconds from the end of the load until nothing moved any more.
        unsettled: sentences on what was not delivered in time; empty if all was.
        seconds: how long the run took.
    """

    transactions: list[Transaction]
    happened: list[Happened]
    accounts: list[Books]
    dead: int
    lost_by_postgres: int
    postgres_away: list[tuple[float, float]]
    restarts: int
    ended: list[str]
    reached: set[str]
    settled_after: float
    unsettled: list[str]
    seconds: float

    @property
    def missing(self) -> int:
        """Committed events that a subscription has not received, over all of them."""
        return sum(each.missing for each in self.accounts)

    @property
    def double_effects(self) -> int:
        """Events that had more than one effect at a subscription that promises exactly one."""
        return sum(each.repeated for each in self.accounts if each.exactly_once)

    @property
    def undone_delivered(self) -> int:
        """Effects of events that were rolled back."""
        return sum(each.undone for each in self.accounts)

    @property
    def ok(self) -> bool:
        """Whether the bus kept its promise."""
        return not (
            self.missing
            or self.double_effects
            or self.undone_delivered
            or self.lost_by_postgres
            or self.dead
            or self.unsettled
        )

    @property
    def committed(self) -> int:
        """Events that are committed, by PostgreSQL's word."""
        return self.accounts[0].committed

    def outcomes(self) -> Counter[str]:
        """How the application's transactions ended."""
        return Counter(each.outcome for each in self.transactions)

    def commits(self) -> list[float]:
        """Seconds that each commit took while PostgreSQL was there, the longest first."""
        return sorted(
            (
                each.seconds
                for each in self.transactions
                if each.outcome == "committed" and not self._while_away(each)
            ),
            reverse=True,
        )

    def _while_away(self, transaction: Transaction) -> bool:
        began, ended = transaction.began_at, transaction.began_at + transaction.seconds
        return any(began < back and ended > gone for gone, back in self.postgres_away)

    def kinds(self) -> dict[str, int]:
        """How often each kind that was tried has hit somebody."""
        tried = {each.kind: 0 for each in self.happened}
        return tried | Counter(each.kind for each in self.happened if each.hit)

    def as_dict(self) -> dict[str, Any]:
        """A JSON-able object with everything."""
        kinds = self.kinds()
        outcomes = self.outcomes()
        commits = self.commits()
        return {
            "ok": self.ok,
            "missing": self.missing,
            "double_effects": self.double_effects,
            "rolled_back_but_delivered": self.undone_delivered,
            "longest_commit_ms": round(1000 * commits[0], 1) if commits else None,
            "commit_p99_ms": round(1000 * commits[len(commits) // 100], 1) if commits else None,
            "committed": self.committed,
            "transactions": dict(outcomes),
            "subscriptions": [asdict(each) for each in self.accounts],
            "dead": self.dead,
            "lost_by_postgresql": self.lost_by_postgres,
            "postgresql_away_seconds": round(sum(b - a for a, b in self.postgres_away), 1),
            "faults": len(self.happened),
            "events_per_fault": round(self.committed / max(1, len(self.happened)), 1),
            "kinds": kinds,
            "kinds_without_hit": [kind for kind, times in kinds.items() if not times],
            "timeline": [asdict(each) for each in self.happened],
            "restarts": self.restarts,
            "ended_by_themselves": self.ended,
            "kill_points_reached": sorted(self.reached),
            "settled_after_seconds": round(self.settled_after, 1),
            "unsettled": self.unsettled,
            "seconds": round(self.seconds, 1),
        }
