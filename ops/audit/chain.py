"""Verifying the chain: every seal made again from its rows and the seal before, every head of the ledger against it.

Reads page by page as `ecom_reader`, with no transaction open and as much memory for a million rows as for a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, RowMapping
from sqlalchemy.orm import Session

from inventory_service.audit import chain as releases
from inventory_service.audit.chain import Position
from ops.audit import ledger
from shared import seals
from shared.seals import Seal
from shared.times import timestamp

SEALS_AT_ONCE = 1000
ROWS_AT_ONCE = 1000

# A seal that has this many rows is none of ours, and they are counted only.
MOST_ROWS = 10 * releases.ROWS_PER_SEAL

# Longer than this nothing of ours takes to be sealed and witnessed.
TIMEOUT_S = 60

# The number of faults that are reported one by one; the others are counted.
MOST_FAULTS = 100

# Before every row, also one whose xid was changed.
START: Position = (-(2**63), 0)


@dataclass(frozen=True)
class Fault:
    """A fault and its place: seals from one seq to another, the ids of the rows that stand there now, and when those
    seals were made: after one moment, and at another at the latest."""

    seals: tuple[int, int]
    what: str
    ids: tuple[int, int] | None = None
    after: datetime | None = None
    until: datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "first_seal": self.seals[0],
            "last_seal": self.seals[1],
            "what": self.what,
            "first_id": self.ids and self.ids[0],
            "last_id": self.ids and self.ids[1],
            "after": timestamp(self.after) if self.after else None,
            "until": timestamp(self.until) if self.until else None,
        }

    def __str__(self) -> str:
        first, last = self.seals
        where = f"seal {first}" if first == last else f"seals {first} to {last}"
        ids = f", rows {self.ids[0]} to {self.ids[1]}" if self.ids else ""
        after = f" after {timestamp(self.after)}" if self.after else ""
        until = f" until {timestamp(self.until)}" if self.until else ""
        return f"{where}{ids}{after}{until}: {self.what}"


@dataclass
class Verdict:
    """The result of a verification. `warnings` are about delays, which are no fault of the chain."""

    seals: int = 0
    rows: int = 0
    last: int = 0  # the seq of the newest seal
    head: str | None = None  # its MAC
    waiting: int = 0  # rows that no seal covers yet
    unwitnessed: int = 0  # seals that the ledger does not know yet
    found: int = 0
    faults: list[Fault] = field(default_factory=list)  # the first of those found
    warnings: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.found

    def add(self, fault: Fault) -> None:
        """Something is wrong."""
        self.found += 1
        if self.found <= MOST_FAULTS:
            self.faults.append(fault)

    def summary(self) -> str:
        """How it ended, in a few words."""
        how = "intact" if self.intact else counted(self.found, "fault")
        return f"{how}: {counted(self.seals, 'seal')} over {counted(self.rows, 'row')}"

    def sentence(self) -> str:
        """The same, with the first fault."""
        return self.summary() if self.intact else f"{self.summary()}; first: {self.faults[0]}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"intact": self.intact, **vars(self), "faults": [fault.as_dict() for fault in self.faults]}


def counted(count: int, what: str) -> str:
    """1 seal, 1,000 seals."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def verify(
    chain: Session, witness: Connection, keys: Sequence[str], seen: Callable[[int, int], None] = lambda rows, of: None
) -> Verdict:
    """Walk the chain to its newest seal. `seen` is called with the number of rows checked and of all rows.

    Each statement of `chain` and `witness` must see what is committed, and be a transaction of its own.
    """
    # The ledger first: a head that it knows now must be in the chain that is read next, unless it was taken out.
    head = ledger.newest_head(witness)
    end = releases.newest_seal(chain)
    verdict = Verdict(last=end.seq, head=end.mac) if end else Verdict()
    walk = _Walk(chain, keys, verdict)
    for page in _pages(chain, end.seq if end else 0):
        known = ledger.heads_between(witness, walk.seq, page[-1].seq)
        for seal in page:
            walk.step(seal, known.get(seal.seq))
        seen(verdict.rows, end.total if end else 0)
    if head and head["seq"] > walk.seq:
        verdict.add(_cut(walk.before, head))
    if walk.unknown and (age := _age_s(walk.unknown.sealed_at)) > TIMEOUT_S:
        verdict.warnings.append(f"the ledger does not know seal {walk.unknown.seq}, which is {age:.0f} s old")
    state = releases.status(chain)
    verdict.waiting = state["waiting"]
    if state["trouble"]:
        verdict.warnings.append(state["trouble"])
    if state["waiting"] and (age := _age_s(datetime.fromisoformat(state["oldest_waiting_at"]))) > TIMEOUT_S:
        verdict.warnings.append(f"{counted(state['waiting'], 'row')} without seal, the oldest for {age:.0f} s")
    return verdict


def _pages(chain: Session, end: int) -> Iterator[list[Seal]]:
    last = 0
    # Where the newest seal goes while this runs, the pages end before it; the ledger tells.
    while last < end and (page := list(releases.seals_after(chain, last, min(SEALS_AT_ONCE, end - last)))):
        yield page
        last = page[-1].seq


def _cut(last: Seal | None, head: RowMapping) -> Fault:
    seq, total = (last.seq, last.total) if last else (0, 0)
    gone = f"{counted(head['seq'] - seq, 'seal')} with {counted(head['total'] - total, 'row')}"
    what = f"the ledger knows seal {head['seq']}, the chain ends at {seq}: {gone} cut off"
    return Fault((seq + 1, head["seq"]), what, None, last.sealed_at if last else None, head["at"])


class _Walk:
    """Goes from seal to seal, and the rows with it."""

    def __init__(self, chain: Session, keys: Sequence[str], verdict: Verdict) -> None:
        self.keys = {seals.key_id(key): key for key in keys}
        self.verdict = verdict
        self.rows = _Rows(chain)
        self.before: Seal | None = None
        self.unknown: Seal | None = None  # the oldest that the ledger does not know
        # What the next seal may be bound to. Of a seal that is wrong its MAC may be what was changed, or not: one of
        # the two fits the next seal, and so one fault is not told as many.
        self._bound_to = {seals.GENESIS}
        self._sound = True
        self._total = 0

    @property
    def seq(self) -> int:
        """The seal that it stands at."""
        return self.before.seq if self.before else 0

    def step(self, seal: Seal, known: str | None) -> None:
        """Look at the next seal; `known` is its MAC as the ledger has it."""
        run, before, expected = self.rows.take((seal.until_xid, seal.until_id)), self.before, self.seq + 1
        made = set() if seal.seq != expected else self._made_again(seal, run)
        wrong = self._wrong(seal, run, made)
        if known is None:
            self.verdict.unwitnessed += 1
            self.unknown = self.unknown or seal
        elif not seals.same(known, seal.mac):
            wrong.append("the ledger knows another seal of this number")
        if wrong:
            after = before.sealed_at if before else None
            self.verdict.add(Fault((expected, seal.seq), "; ".join(wrong), run.ids, after, seal.sealed_at))
        self._bound_to, self._total, self._sound = {seal.mac} | made, seal.total, not wrong
        self.before = seal
        self.verdict.seals += 1
        self.verdict.rows += run.count

    def _wrong(self, seal: Seal, run: _Run, made: set[str]) -> list[str]:
        expected = self.seq + 1
        if seal.seq != expected:
            last = seal.seq - 1
            missing = f"seal {last} is" if last == expected else f"seals {expected} to {last} are"
            return [f"{missing} missing, and seal {seal.seq} cannot be checked without"]
        if seal.key_id not in self.keys:
            return [f"made with the key {seal.key_id}, which AUDIT_KEY does not hold"]
        if run.count != seal.rows:
            how = "deleted" if run.count < seal.rows else "inserted"
            return [f"sealed were {counted(seal.rows, 'row')}, there are {run.count:,}: some were {how}"]
        if not any(seals.same(mac, seal.mac) for mac in made):
            return ["its rows or the seal itself were altered"]
        if self._sound and seal.total != self._total + seal.rows:
            return [f"it counts {seal.total:,} rows in all, where {self._total + seal.rows:,} would follow"]
        return []

    def _made_again(self, seal: Seal, run: _Run) -> set[str]:
        """The MACs that this seal may have: from its rows, and each that it may be bound to."""
        key = self.keys.get(seal.key_id)
        if key is None:
            return set()
        until, values = (seal.until_xid, seal.until_id), [releases.sealed_values(row) for row in run.rows]
        return {
            seals.seal_mac(key, before, seals.Place(seal.seq, until, seal.total, seal.sealed_at), values)
            for before in self._bound_to
        }


class _Rows:
    """The rows in the order of the chain, read page by page."""

    def __init__(self, chain: Session) -> None:
        self.chain = chain
        self._read = START
        self._next: RowMapping | None = None
        self._rows = self._pages()

    def take(self, until: Position) -> _Run:
        """All that stand before this position and were not taken before."""
        run = _Run()
        self._next = self._next or next(self._rows, None)
        while self._next is not None and (self._next["xid"], self._next["id"]) <= until:
            run.add(self._next)
            self._next = next(self._rows, None)
        return run

    def _pages(self) -> Iterator[RowMapping]:
        while page := releases.rows_after(self.chain, self._read, ROWS_AT_ONCE):
            self._read = page[-1]["xid"], page[-1]["id"]
            yield from page


@dataclass
class _Run:
    """The rows between two seals, as they stand now."""

    rows: list[RowMapping] = field(default_factory=list)  # no more than MOST_ROWS
    count: int = 0
    ids: tuple[int, int] | None = None  # the smallest and the largest

    def add(self, row: RowMapping) -> None:
        """One more."""
        self.count += 1
        self.ids = (min(self.ids[0], row["id"]), max(self.ids[1], row["id"])) if self.ids else (row["id"], row["id"])
        if self.count <= MOST_ROWS:
            self.rows.append(row)


def _age_s(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()
