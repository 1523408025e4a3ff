"""What must hold between a release and the next one, as a table, and the comparison of two of them by it. Pure.

Every upgrade runs both versions on the same queues and tables, and a rollback runs the old one on what the new one
wrote. `ecom release check` compares the code with the last release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ops.release import comparisons
from ops.release.comparisons import Found, Tree


@dataclass(frozen=True)
class Rule:
    """One row: what both versions share, what one release may do to it, what needs two, and the comparison."""

    shared: str
    one: str
    two: str
    compare: Callable[[Tree, Tree], Found]


@dataclass(frozen=True)
class Breach:
    """A change that the last release would not survive: where it is, what it breaks, and what to do instead."""

    place: str
    problem: str
    rule: Rule

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}. {self.rule.shared}: {self.rule.one}. Instead: {self.rule.two}"


RULES = (
    Rule(
        "stored messages (queue, DLQ, outbox, export)",
        "a new field has a default; unknown fields are ignored",
        "give a field a default; to remove one, give it a default in this release and remove it in the next",
        comparisons.stored_messages,
    ),
    Rule(
        "a new event type",
        "no queue that the last release consumes hears it",
        "add the type and the rule of each consumer in this release (NOT_WRITTEN in ops/release/tree.py), and publish "
        "it in the next; or bind a new queue",
        comparisons.new_event_types,
    ),
    Rule(
        "a change of an event",
        "never; its version stays. A limit of a number is widened where WIDENED in ops/release/tree.py says why the "
        "last release never meets what it would refuse",
        "add a new type: publish both, move the consumers, then retire the old one",
        comparisons.changed_events,
    ),
    Rule(
        "queues and bindings",
        "new ones are added; messages wait for their consumer",
        "give changed arguments a new name; to remove a queue, take its bindings out of the table in this release, and "
        "the queue in the next; run `ecom topology retire QUEUE` with each",
        comparisons.queues,
    ),
    Rule(
        "tables",
        "a new table; a column that is nullable or has a default, also with a key of its own; one that a trigger "
        "fills, where FILLED in ops/release/tree.py says how, also as the new primary key, while the old one stays "
        "unique; an index built CONCURRENTLY",
        "stop reading and writing it in this release (CONTRIBUTING.md, a column that goes), and drop, rename or narrow "
        "it in the next",
        comparisons.tables,
    ),
    Rule(
        "migrations",
        "new ones follow the newest of the last release, and say their phase",
        'keep the old file; one that takes something away says phase = "contract"',
        comparisons.migrations,
    ),
    Rule(
        "RPC",
        "a method gains optional arguments at its end, and fields in its result; the gateway uses them at once, and so "
        "does whoever calls a new service",
        "add the new form beside the old one in this release, let the callers move, and remove the old one in the next",
        comparisons.rpc,
    ),
    Rule(
        "errors over RPC",
        "a new class comes from new methods",
        "add the class to shared/errors.py in this release, and raise it in the next",
        comparisons.errors,
    ),
    Rule(
        "states, reasons, roles, cursors, cookies, tokens",
        "this version reads the old and the new, and writes the old",
        "read it in this release (NOT_WRITTEN in ops/release/tree.py), and write it in the next",
        comparisons.words,
    ),
    Rule(
        "lock numbers, ids made of names, exchanges, seals",
        "never",
        "add a new name beside the old one",
        comparisons.fixed,
    ),
)


def breaches(old: Tree, new: Tree) -> list[Breach]:
    """Every change from one release to the next one that the two cannot survive side by side. A release and itself
    have none."""
    return [Breach(place, problem, rule) for rule in RULES for place, problem in rule.compare(old, new)]
