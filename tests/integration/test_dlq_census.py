"""The census and copies of dead messages: what is counted, when the DLQ is read, and who has to wait for whom."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import eventlet
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.orm import Session

from ops import locks, models
from ops.cli.dlq.views import print_plan
from ops.dlq import census, diagnose, files, operator_session, overview, selection
from ops.dlq.census import Census
from ops.dlq.dlq_reader import DlqReader
from ops.dlq.operator_session import Actor, GaveWay, OperatorSession, Run, Watch
from ops.dlq.replay import plan
from ops.domain import Filter, Kind
from ops.locks import SESSION_PREFIX, holder_of, is_wanted
from shared.config import Settings
from shared.edge.publisher import Outgoing
from shared.envelope import Envelope
from shared.errors import CannotWork, Conflict
from shared.events import OrderCancelled
from shared.predictions import APPLIES, Prediction
from tests.databases import Databases
from tests.integration.support import Mail, Wire, emitted, until
from tests.integration.test_dlq_engine import (  # noqa: F401 - fixtures
    ALL,
    DLQ,
    FAST,
    QUEUE,
    cancellations,
    consumer,
    dated,
    die,
    effects,
    fates,
    file,
    kill,
    left,
    open_operator,
    operations,
    operator,
    payment,
    replay,
    row_of,
    stranger,
    through,
)

CENSUS = Actor("system:census", command="census", gives_way=True)
LONG_S = 1_000_000


@pytest.fixture
def watcher(settings: Settings, database: Databases) -> Iterator[OperatorSession]:
    """The session of a census."""
    one = OperatorSession(settings, CENSUS)
    yield one
    one.close()


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The DLQs that were read, one for each reading."""
    read_all, seen = DlqReader.read, []

    def read(self: DlqReader) -> Any:
        seen.append(self.dlq)
        return read_all(self)

    monkeypatch.setattr(DlqReader, "read", read)
    return seen


@pytest.fixture
def twice(kill: Any, stranger: Any, mail: Mail) -> Envelope:  # noqa: F811
    """One of two dead messages, which lies in the DLQ two times."""
    event, _ = kill(cancellations(2))
    stranger(event.to_json().encode(), dated(1), str(event.message_id))
    until(lambda: mail.waiting(DLQ) == 3)
    return event


def counted() -> float | None:
    """The metric of the DLQ."""
    return REGISTRY.get_sample_value("ecom_dead_letters", {"queue": DLQ})


def shown(operator: OperatorSession) -> dict[str, Any]:  # noqa: F811
    (one,) = [one for one in overview.overview(operator) if one["dlq"] == DLQ]
    return one


def test_the_census_reads_a_dlq_with_a_copy_once_and_never_again(watcher, twice, readings, database, monkeypatch):
    monkeypatch.setattr(census, "REST", 0)
    mine, of_another_replica = Census(), Census()
    for _ in range(4):
        mine.run_once(watcher)
        of_another_replica.run_once(watcher)
    assert readings == [DLQ]
    assert row_of(database, twice.message_id)["copies"] == 2


def test_the_census_reads_again_when_a_copy_has_come_or_gone(watcher, twice, stranger, readings, database, monkeypatch):  # noqa: F811
    monkeypatch.setattr(census, "REST", 0)
    count = Census()
    assert [count.run_once(watcher) for _ in range(3)] == [0, 1, 0]
    stranger(twice.to_json().encode(), dated(1), str(twice.message_id))
    assert [count.run_once(watcher) for _ in range(3)] == [0, 1, 0]
    assert row_of(database, twice.message_id)["copies"] == 3
    assert readings == [DLQ] * 2


def test_the_census_rests_where_the_numbers_cannot_be_made_to_agree(watcher, kill, mail, readings, monkeypatch):  # noqa: F811
    monkeypatch.setattr(census, "REST", LONG_S)
    kill(cancellations(1))
    mail.all(DLQ)  # as if the message were still on its way
    count = Census()
    for _ in range(5):
        assert count.run_once(watcher) == 0
    assert readings == [DLQ]


def test_the_census_does_not_take_a_reading_operator_for_a_difference(watcher, operator, kill, mail, monkeypatch):  # noqa: F811
    """Or it would read the DLQ as soon as the operator has gone, and hold up the next one."""
    reconciled: list[str] = []
    monkeypatch.setattr(census, "reconcile", lambda operator, queue: reconciled.append(queue) or 0)
    kill(cancellations(3))
    count = Census()
    with operator.look_into(DLQ, ALL):
        assert mail.waiting(DLQ) == 0
        for _ in range(3):
            count.run_once(watcher)
    assert reconciled == []


def test_the_metric_counts_what_lies_there_also_while_somebody_reads_it(watcher, operator, kill, stranger, mail):  # noqa: F811
    kill(cancellations(3))
    stranger()  # written nowhere
    count = Census()
    count.run_once(watcher)
    assert counted() == 4
    with operator.look_into(DLQ, ALL) as held:
        assert mail.waiting(DLQ) == 0
        count.run_once(watcher)
        assert counted() == 4
        assert shown(operator)["messages"] == 3, "what is written down"
        recorded = [item.slot.message_id for item in held.take(4) if item.dead_letter.reason != "unknown"]
        operator.databases.leave(QUEUE, recorded[:1], "discarded", operator.databases.now(QUEUE))
        count.run_once(watcher)
        assert counted() == 3


def wait_for_another(monkeypatch: pytest.MonkeyPatch, watcher: OperatorSession) -> eventlet.event.Event:
    """Let a reading go on after its first message only when another waits for the DLQ; sent when it has begun."""
    read_all, reading = DlqReader.read, eventlet.event.Event()
    monkeypatch.setattr(selection, "REPORT_EVERY", 1)

    def read(self: DlqReader) -> Any:
        for number, item in enumerate(read_all(self)):
            if number == 1:
                monkeypatch.setattr(DlqReader, "read", read_all)
                reading.send()
                with watcher.ledger() as ledger:
                    until(lambda: is_wanted(ledger, DLQ))
            yield item

    monkeypatch.setattr(DlqReader, "read", read)
    return reading


def test_the_census_gives_way_to_an_operator_who_then_finds_every_message(
    watcher,
    operator,  # noqa: F811
    kill,  # noqa: F811
    monkeypatch,
):
    kill(cancellations(5))
    reading = wait_for_another(monkeypatch, watcher)
    looking = eventlet.spawn(census.reconcile, watcher, QUEUE)
    reading.wait()
    assert plan(operator, QUEUE, ALL, None)["in_queue"] == 5
    with pytest.raises(GaveWay):
        looking.wait()


def test_the_census_gives_way_while_it_writes(watcher, operator, stranger, database, monkeypatch):  # noqa: F811
    for _ in range(3):
        stranger()
    monkeypatch.setattr(census, "CHUNK", 1)
    enter, others = watcher.databases.enter, []

    def and_wait(*given: Any) -> None:
        enter(*given)
        others.append(eventlet.spawn(plan, operator, QUEUE, ALL, None))
        with watcher.ledger() as ledger:
            until(lambda: is_wanted(ledger, DLQ))

    monkeypatch.setattr(watcher.databases, "enter", and_wait)
    with pytest.raises(GaveWay):
        census.reconcile(watcher, QUEUE)
    assert [other.wait()["in_queue"] for other in others] == [3]
    assert len(database.rows("payment", "SELECT 1 FROM dead_messages")) == 1, "what was written stays"


def test_an_operator_waits_for_the_census_however_long_it_takes_to_put_back(watcher, open_operator, mail, monkeypatch):  # noqa: F811
    monkeypatch.setattr(operator_session, "LOCK_TIMEOUT_S", 0.05)
    operator = open_operator()  # noqa: F811
    with watcher.ledger() as ledger:
        watcher.take(ledger, DLQ)
        waiting = eventlet.spawn(plan, operator, QUEUE, ALL, None)
        until(lambda: is_wanted(ledger, DLQ))
        until(lambda: not is_wanted(ledger, DLQ))  # its first wait is over
        until(lambda: is_wanted(ledger, DLQ))
    assert waiting.wait()["chosen"] == 0


def test_a_census_waits_for_nobody(watcher, operator, monkeypatch):  # noqa: F811
    monkeypatch.setattr(locks, "_WAIT", text("SELECT 1 / 0"))
    operator.actor = CENSUS
    with operator.operation(Kind.REPLAY, DLQ, ALL, {}), pytest.raises(Conflict), watcher.look_into(DLQ, ALL):
        pass


def test_who_works_on_a_dlq_is_named_with_the_operation_and_how_to_see_it(settings, operator, open_operator):  # noqa: F811
    ann = OperatorSession(settings, Actor("Jörg", "to see", "ecom dlq replay"))
    with ann.operation(Kind.REPLAY, DLQ, ALL, {}) as run, open_operator("bob").ledger() as ledger:
        holder = holder_of(ledger, DLQ)
        assert holder is not None
        assert holder.since is not None
        assert (holder.actor, holder.command, holder.operation_id) == ("Jörg", "ecom dlq replay", run.operation_id)
        assert f"ecom dlq replay (`ecom dlq history {run.operation_id}` shows it)" in shown(operator)["note"]
        assert shown(operator)["holder"]["operation_id"] == str(run.operation_id)
    with ann.look_into(DLQ, ALL):
        assert shown(operator)["note"].endswith(": ecom dlq replay (it only reads)")
    assert shown(operator)["holder"] is None
    ann.close()


def test_a_session_of_an_older_version_is_not_named_by_the_row_of_an_earlier_one(operator, settings, mail):  # noqa: F811
    with operator.operation(Kind.REPLAY, DLQ, ALL, {}):
        pass
    older = OperatorSession(settings, Actor("old"))
    with older.ledger() as ledger:
        assert f"{SESSION_PREFIX}old" == ledger.scalar(text("SELECT current_setting('application_name')"))
        ledger.execute(text("SELECT pg_advisory_lock(:class, hashtext(:queue))"), {"class": 0x646C71, "queue": DLQ})
        assert shown(operator)["note"] == "being worked on by old"
        assert shown(operator)["holder"]["operation_id"] is None
    older.close()


def test_copies_are_shown_as_copies(watcher, operator, twice, readings):  # noqa: F811
    assert shown(operator)["note"] == "2 recorded"
    assert census.reconcile(watcher, QUEUE) == 1
    one = shown(operator)
    assert (one["messages"], one["recorded"], one["copies"], one["note"]) == (3, 2, 1, "3 messages of 2 ids")
    assert one["reasons"] == [{"reason": "unexpected_event", "count": 3}]
    (group,) = overview.groups(operator, QUEUE)
    assert (group["count"], group["ids"]) == (3, 2)
    scanned = overview.groups(operator, QUEUE, scan=True)
    assert (sum(group["count"] for group in scanned), sum(group["ids"] for group in scanned)) == (3, 2)
    items, _ = operator.databases.page(QUEUE, {}, 50, None)
    assert {UUID(item["message_id"]): item["copies"] for item in items}[twice.message_id] == 2
    assert overview.full_message(operator, QUEUE, twice.message_id)["message"]["copies"] == 2
    planned = plan(operator, QUEUE, ALL, None)
    assert (planned["in_queue"], planned["ids"], planned["chosen"]) == (3, 2, 2)


def test_copies_are_discarded_as_one_and_come_back_as_one(watcher, operator, twice, mail, database, file):  # noqa: F811
    census.reconcile(watcher, QUEUE)
    run = files.discard(operator, QUEUE, file, Filter(ids=frozenset({twice.message_id})), None)
    assert run.tally.as_dict() == {"chosen": 1, "copies": 1, "discarded": 1}
    assert run.outcome == "1 discarded (2 messages of 1 id)"
    assert len(file.read_bytes().splitlines()) == 1
    assert until(lambda: mail.waiting(DLQ) == 1)
    assert left(database) == {"discarded": 1, None: 1}
    assert fates(database) == {"discarded": 1}
    (operation,) = operations(database)
    assert operation["counts"] == {"chosen": 1, "copies": 1, "discarded": 1}
    files.put_back(operator, file)
    assert (row_of(database, twice.message_id)["copies"], shown(operator)["note"]) == (1, "")


def test_a_plan_and_an_export_count_copies_in_the_words_of_the_overview(operator, twice, file, capsys):  # noqa: F811
    print_plan(plan(operator, QUEUE, ALL, 1), as_json=False)
    assert capsys.readouterr().err.splitlines()[0] == f"1 of 3 messages of 2 ids in {DLQ} are meant"
    assert files.export(operator, QUEUE, file, ALL).outcome == "3 messages of 2 ids"


def test_a_discard_that_is_stopped_counts_no_copies_that_stay(open_operator, stranger, mail, file, monkeypatch):  # noqa: F811
    newer = str(uuid4())
    stranger(b"older", dated(1))
    for _ in range(2):
        stranger(b"newer", dated(2), newer)
    monkeypatch.setattr(files, "CHUNK", 1)
    gone: list[Run] = []
    watch = Watch(progressed=lambda run: gone.extend([run] * run.tally.fates.total()), stopping=lambda: bool(gone))
    run = files.discard(open_operator("ann", watch), QUEUE, file, ALL, None)
    assert run.tally.as_dict() == {"chosen": 2, "discarded": 1}
    assert mail.waiting(DLQ) == 2


def test_a_filter_that_chooses_one_copy_takes_all(operator, twice, mail, file):  # noqa: F811
    """The copies differ in their headers: one has a reason, the other none."""
    for reason in ("unexpected_event", "exhausted"):
        with operator.look_into(DLQ, Filter(reasons=frozenset({reason}), ids=frozenset({twice.message_id}))) as held:
            (item,) = held.take(5)
            assert len(item.slot.tags) == 2


def test_messages_of_one_id_with_different_bodies_are_no_copies(operator, stranger, mail, file):  # noqa: F811
    message_id = str(uuid4())
    for body in (b"one", b"two", b"two"):
        stranger(body, dated(1), message_id)
    run = files.discard(operator, QUEUE, file, ALL, None)
    assert run.tally.as_dict() == {"chosen": 2, "copies": 1, "discarded": 2}
    assert {json.loads(line)["body"] for line in file.read_bytes().splitlines()} == {"one", "two"}
    assert mail.waiting(DLQ) == 0


def test_a_message_that_dies_again_after_its_copies_left_is_one(
    watcher,
    operator,  # noqa: F811
    twice,
    payment,  # noqa: F811
    database,
    monkeypatch,
):
    """It dies before the replay has written down that it left."""
    census.reconcile(watcher, QUEUE)
    publish = operator.publish

    def and_die(messages: list[Outgoing]) -> None:
        publish(messages)
        payment.handle_batch(QUEUE, [twice], handle=die)

    monkeypatch.setattr(operator, "publish", and_die)
    replay(operator, QUEUE, Filter(ids=frozenset({twice.message_id})), None, FAST)
    row = row_of(database, twice.message_id)
    assert (row["left_at"], row["copies"]) == (None, 1)


def test_a_replay_tells_what_was_applied_from_what_had_no_effect(operator, kill, payment, consumer, database):  # noqa: F811
    """Two cancellations of one order: the first takes effect, the second finds the payment cancelled."""
    order_id = uuid4()
    first, second = (emitted(OrderCancelled(order_id, "deadline")) for _ in range(2))
    other, stale, done = cancellations(3)
    kill([first, second, other, stale, done])
    payment.handle_batch(QUEUE, [emitted(OrderCancelled(stale.payload.order_id, "deadline")), done])
    consumer.start()
    run = replay(operator, QUEUE, ALL, None, FAST)
    assert run.outcome == "1 already applied, 2 applied, 2 without effect"
    assert run.tally.as_dict() == {"chosen": 5, "applied": 2, "already_applied": 1, "without_effect": 2}
    by_id = {row["message_id"]: row["fate"] for row in database.rows("ops", "SELECT * FROM operation_messages")}
    assert {by_id[first.message_id], by_id[second.message_id]} == {"applied", "without_effect"}
    assert (by_id[other.message_id], by_id[stale.message_id]) == ("applied", "without_effect")
    assert by_id[done.message_id] == "already_applied"
    assert set(effects(database).values()) == {1}


def test_a_message_at_which_a_rule_fails_is_predicted_alone(operator, kill, consumer, monkeypatch):  # noqa: F811
    wrong, _ = kill(cancellations(2))

    def fails_at_one(session: Any, events: list[Envelope]) -> Any:
        if wrong.message_id in {event.message_id for event in events}:
            raise KeyError("sku")
        return {event.message_id: APPLIES for event in events}

    monkeypatch.setitem(diagnose.PREDICTORS, QUEUE, fails_at_one)
    found = diagnose.diagnose(operator, QUEUE, ALL)
    assert {group.prediction: count for group, count in found.groups.items()} == {
        Prediction.APPLY: 1,
        Prediction.POISON: 1,
    }
    consumer.start()
    assert replay(operator, QUEUE, ALL, None, FAST).tally.as_dict() == {"chosen": 2, "applied": 2}


def test_a_lock_at_which_a_rule_waits_in_vain_is_no_fault_of_the_message(operator, kill, monkeypatch):  # noqa: F811
    kill(cancellations(2))

    def waits(session: Session, events: list[Envelope]) -> Any:
        session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'locked' USING ERRCODE = '55P03'; END $$"))

    monkeypatch.setitem(diagnose.PREDICTORS, QUEUE, waits)
    with pytest.raises(CannotWork):
        diagnose.diagnose(operator, QUEUE, ALL)


def test_an_operation_that_loses_the_ledger_writes_why_it_ended_when_the_ledger_is_back(
    open_operator,  # noqa: F811
    settings,
    wire,
    database,
):
    operator = open_operator("ann", changed=through(wire, settings, "ops"))  # noqa: F811

    def lose_it(run: Run) -> None:
        wire.cut()
        plan(open_operator("bob"), QUEUE, ALL, None)
        (operation,) = operations(database)
        assert (operation["status"], operation["outcome"]) == ("interrupted", models.DIED)
        run.write()

    with pytest.raises(CannotWork, match="the database of ops"), operator.operation(Kind.REPLAY, DLQ, ALL, {}) as run:
        lose_it(run)
    (operation,) = operations(database)
    assert operation["status"] == "failed"
    assert operation["outcome"].startswith("the ledger cannot be used: ")


def test_an_operation_that_ended_well_says_so_though_the_ledger_was_cut_off(open_operator, settings, wire, database):  # noqa: F811
    operator = open_operator("ann", changed=through(wire, settings, "ops"))  # noqa: F811
    with operator.operation(Kind.REPLAY, DLQ, ALL, {}):
        wire.cut()
    (operation,) = operations(database)
    assert (operation["status"], operation["outcome"]) == ("done", "nothing to do")


def test_a_ledger_that_stays_away_is_tried_until_the_time_is_over(open_operator, settings, wire: Wire, database):  # noqa: F811
    tries: Callable[[], bool] = iter([False, False, True]).__next__
    watch = Watch(stopping=tries)
    operator = open_operator("ann", watch, through(wire, settings, "ops"))  # noqa: F811
    with pytest.raises(CannotWork, match="the database of ops"), operator.operation(Kind.REPLAY, DLQ, ALL, {}):
        wire.close()
    assert operations(database)[0]["status"] == "started"


def test_an_operation_during_which_the_server_restarted_is_not_called_dead(open_operator, database):  # noqa: F811
    with open_operator("ann").ledger() as ledger:
        models.start(ledger, models.NewOperation(Kind.REPLAY, DLQ, "ann", "", ALL, {}))
    database.run("ops", "UPDATE operations SET started_at = pg_postmaster_start_time() - interval '1 s'")
    plan(open_operator("bob"), QUEUE, ALL, None)
    assert operations(database)[0]["outcome"] == models.SERVER_RESTARTED
