"""`ecom dlq` as an operator types it: the output of each command for people and for programs, and its exit code."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import eventlet
import pytest

from tests.commands import ECOM, Ended, ecom_here, started
from tests.integration.support import until
from tests.integration.test_dlq_engine import (  # noqa: F401 - fixtures
    DLQ,
    QUEUE,
    cancellations,
    consumer,
    effects,
    ids_of,
    kill,
    operations,
    payment,
    stranger,
)
from tests.terminal import open_terminal
from topology.table import QUEUES

# eventlet's own waits for what is to be read, and past every deadline.
read = eventlet.patcher.original("os").read
TIMEOUT_S = 30


def ecom(*words: Any, **environment: str) -> Ended:
    return ecom_here("dlq", *words, code=None, **environment)


@pytest.fixture
def dead(kill: Callable[..., Any]) -> list[Any]:  # noqa: F811
    return kill(cancellations(3))


def test_ls_is_0_where_nothing_is_dead_and_1_where_something_is(database, mail, kill):  # noqa: F811
    assert ecom("ls").code == 0
    kill(cancellations(2))
    said = ecom("ls")
    assert said.code == 1
    (line,) = [line for line in said.out.splitlines() if line.split()[:1] == [QUEUE]]
    assert line.split()[1] == "2"
    assert "2 unexpected_event" in line


@pytest.mark.parametrize("scan", [[], ["--scan"]])
def test_ls_tells_programs_of_every_queue(dead, stranger, scan):  # noqa: F811
    stranger()
    said = ecom("ls", "--json", *scan)
    assert said.code == 1
    queues = {one["queue"]: one for one in said.answer["queues"]}
    assert queues.keys() == {queue.name for queue in QUEUES}
    one = queues[QUEUE]
    assert (one["dlq"], one["service"], one["messages"], one["recorded"]) == (DLQ, "payment", 4, 3)
    assert one["reasons"][0] == {"reason": "unexpected_event", "count": 3}


@pytest.mark.parametrize("scan", [[], ["--scan"]])
def test_groups_count_what_is_alike(dead, scan):
    said = ecom("groups", QUEUE, *scan)
    assert said.code == 1
    assert "UnexpectedEvent" in said.out
    (group,) = ecom("groups", DLQ, "--json", *scan).answer["groups"]
    assert (group["count"], group["reason"], group["event_type"]) == (3, "unexpected_event", "order.cancelled")
    assert group["example_id"] in map(str, ids_of(dead))
    assert ecom("groups", QUEUES[0].name, *scan).code == 0


def test_peek_is_a_line_a_message(dead):
    said = ecom("peek", QUEUE, "-n", 2)
    assert said.code == 0
    assert sum(str(message_id) in said.out for message_id in ids_of(dead)) == 2
    assert f"2 of 3 that match, 3 in {DLQ}" in said.out
    told = ecom("peek", QUEUE, "--json", "--order-id", dead[0].payload.order_id).answer
    assert (told["matching"], told["in_queue"]) == (1, 3)
    (message,) = told["messages"]
    assert message["message_id"] == str(dead[0].message_id)
    assert json.loads(message["body"])["payload"]["order_id"] == str(dead[0].payload.order_id)
    assert message["reason"] == "unexpected_event"


def test_text_of_a_message_cannot_command_the_terminal(database, stranger):  # noqa: F811
    hostile = "\x1b]0;owned\x07\x1b[2J\nnext \ud800"
    message_id = stranger(b"\x1b[2J", {"x-reason": hostile, "x-error-message": hostile}, type="t\x1b[2J")
    for said in (ecom("peek", QUEUE), ecom("show", QUEUE, "--id", message_id), ecom("groups", QUEUE, "--scan")):
        assert said.code in (0, 1)
        assert "owned" in said.out
        assert "\x1b" not in said.out
        assert "\x07" not in said.out


def test_show_tells_all_of_one_message(dead):
    said = ecom("show", QUEUE, "--id", dead[0].message_id)
    assert said.code == 0
    for part in ("x-original-routing-key", "not now", str(dead[0].payload.order_id), "there is no such order"):
        assert part in said.out
    told = ecom("show", QUEUE, "--id", dead[0].message_id, "--json").answer
    assert told["event"]["message_id"] == str(dead[0].message_id)
    assert told["error"]["reason"] == told["headers"]["x-reason"] == "unexpected_event"
    missing = ecom("show", QUEUE, "--id", uuid4())
    assert (missing.code, missing.out) == (1, "")
    assert "there is no message" in missing.err


def test_diagnose_says_what_a_replay_would_do(dead, payment):  # noqa: F811
    payment.handle_batch(QUEUE, dead[:1])
    said = ecom("diagnose", QUEUE)
    assert said.code == 0
    assert "already applied" in said.out
    groups = ecom("diagnose", QUEUE, "--json").answer["groups"]
    assert {group["prediction"]: group["count"] for group in groups} == {"will apply": 2, "already applied": 1}
    assert ecom("diagnose", QUEUES[0].name).out == "nothing to diagnose\n"


def test_a_dry_run_says_what_is_meant_and_does_nothing(dead, mail, database):
    said = ecom("replay", QUEUE, "--all", "--dry-run")
    assert said.code == 0
    assert f"3 of 3 messages in {DLQ} are meant" in said.err
    assert ecom("replay", QUEUE, "--max", 2, "--dry-run", "--json").answer["chosen"] == 2
    assert operations(database) == []
    assert until(lambda: mail.waiting(DLQ) == 3)


def test_a_replay_ends_with_0_when_all_is_well(dead, consumer, database):  # noqa: F811
    consumer.start()
    said = ecom("replay", QUEUE, "--max", 1, "--yes", "--actor", "ann", "--reason-text", "fixed")
    assert said.code == 0, said.err
    assert said.out.startswith(f"replay {DLQ}: done: 1 applied\n")
    said = ecom("replay", QUEUE, "--all", "--yes", "--json")
    assert said.code == 0
    (told,) = said.answer["operations"]
    assert (told["status"], told["chosen"], told["applied"]) == ("done", 2, 2)
    assert sum(effects(database).values()) == 3
    first, second = operations(database)
    assert (first["actor"], first["why"]) == ("ann", "fixed")
    assert "@" in second["actor"]


def test_a_replay_ends_with_1_when_something_died_again(dead, consumer):  # noqa: F811
    consumer.start(lambda events, tx: [tx.fail(event, _wrong()) for event in events])
    said = ecom("replay", QUEUE, "--id", dead[0].message_id, "--yes")
    assert said.code == 1
    assert "1 dead again" in said.out


def _wrong() -> Exception:
    from shared.errors import UnexpectedEvent

    return UnexpectedEvent("still not")


def test_a_discard_and_its_import(dead, mail, database, tmp_path):
    file = tmp_path / "dead.jsonl"
    said = ecom("discard", QUEUE, "--to", file, "--all", "--yes")
    assert said.code == 0, said.err
    assert "3 discarded; sha256 " in said.out
    assert mail.waiting(DLQ) == 0
    taken = ecom("discard", QUEUE, "--to", file, "--all", "--yes", "--json")
    assert (taken.code, taken.out) == (3, "")
    assert taken.err == f"ecom: {file} is there already\n"
    said = ecom("import", file, "--yes", "--json")
    assert said.code == 0
    (told,) = said.answer["operations"]
    assert (told["imported"], told["sha256"]) == (3, operations(database)[0]["sha256"])
    assert "3 already there" in ecom("import", file, "--yes").out
    assert ecom("import", file, "--edited", "--yes").code == 0
    assert until(lambda: mail.waiting(DLQ) == 6)


def test_an_export_is_a_file_and_takes_nothing(dead, mail, tmp_path):
    file = tmp_path / "dead.jsonl"
    said = ecom("export", QUEUE, file, "--reason", "unexpected_event")
    assert said.code == 0, said.err
    assert len(file.read_text().splitlines()) == 3
    other = ecom("export", QUEUE, tmp_path / "none.jsonl", "--reason", "crash", "--json")
    assert other.answer["operations"][0]["chosen"] == 0
    assert until(lambda: mail.waiting(DLQ) == 3)


def test_history_says_who_did_what(dead, database, tmp_path):
    ecom("export", QUEUE, tmp_path / "a", "--actor", "ann")
    ecom("discard", QUEUE, "--to", tmp_path / "b", "--id", dead[0].message_id, "--yes", "--actor", "bob")
    rows = ecom("history", "--json").answer["operations"]
    assert [(row["kind"], row["actor"]) for row in rows] == [("discard", "bob"), ("export", "ann")]
    assert [row["actor"] for row in ecom("history", "--json", "--actor", "ann").answer["operations"]] == ["ann"]
    assert ecom("history", "--queue", QUEUES[0].name, "--json").answer == {"operations": []}
    assert len(ecom("history", "--max", 1, "--since", "1h", "--json").answer["operations"]) == 1
    assert "bob" in ecom("history", "--queue", QUEUE).out
    one = ecom("history", rows[0]["operation_id"], "--json").answer
    (message,) = one["messages"]
    assert (message["message_id"], message["fate"]) == (str(dead[0].message_id), "discarded")
    assert str(dead[0].message_id) in ecom("history", rows[0]["operation_id"]).out
    assert ecom("history", uuid4()).code == 1


def test_nothing_to_do_is_an_answer_too(database, mail, tmp_path):
    for words in (("replay", QUEUE, "--all"), ("discard", QUEUE, "--to", tmp_path / "x", "--all")):
        said = ecom(*words, "--json")
        assert (said.code, said.answer) == (0, {"operations": []})


def test_where_nobody_can_answer_yes_must_have_been_said(dead, mail, database, tmp_path):
    file = tmp_path / "a"
    assert ecom("export", QUEUE, file).code == 0
    for words in (
        ("replay", QUEUE, "--all"),
        ("discard", QUEUE, "--to", tmp_path / "b", "--all"),
        ("import", file),
    ):
        said = ecom(*words)
        assert said.code == 2
        assert "say --yes" in said.err
    assert until(lambda: mail.waiting(DLQ) == 3)
    assert [row["kind"] for row in operations(database)] == ["export"]


class Terminal:
    """A command at a terminal, typed into."""

    def __init__(self, *words: Any) -> None:
        for end in open_terminal():  # only to see that there are such
            os.close(end)
        self.pid, self.fd = os.forkpty()
        if self.pid == 0:
            os.execv(ECOM, [str(ECOM), "dlq", *map(str, words)])
        self.seen = b""
        os.set_blocking(self.fd, False)

    def until(self, text: bytes) -> None:
        until(lambda: text in self._read(), within_s=TIMEOUT_S)

    def _read(self) -> bytes:
        try:
            self.seen += read(self.fd, 65536)
        except OSError:  # nothing yet, or the other side has ended
            eventlet.sleep(0.02)
        return self.seen

    def answer(self, question: bytes, keys: bytes) -> None:
        """Type an answer once the question is read: a Ctrl-C between the asking and the reading waits for more keys."""
        self.until(question)
        self.until(b"[y/N]: ")
        until(self._sleeps, within_s=TIMEOUT_S)
        os.write(self.fd, keys)

    def _sleeps(self) -> bool:
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "S"

    def code(self) -> int:
        def status() -> Any:
            self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            return pid and (os.waitstatus_to_exitcode(status),)

        (code,) = until(status, within_s=TIMEOUT_S)
        os.close(self.fd)
        return int(code)


@pytest.mark.parametrize(("keys", "code", "discarded"), [(b"y\n", 0, 3), (b"n\n", 1, 0), (b"\x03", 1, 0)])
def test_a_terminal_is_asked_and_ctrl_c_is_an_answer(dead, mail, database, tmp_path, keys, code, discarded):
    terminal = Terminal("discard", QUEUE, "--to", tmp_path / "a", "--all")
    terminal.answer(b"Discard 3 messages into", keys)
    assert terminal.code() == code
    assert until(lambda: mail.waiting(DLQ) == 3 - discarded or None) if discarded < 3 else mail.waiting(DLQ) == 0
    assert len(operations(database)) == (1 if discarded else 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_after_what_is_in_hand(dead, consumer, mail, database, number):  # noqa: F811
    consumer.start()
    with started("dlq", "replay", QUEUE, "--all", "--yes", "--rate", "1/h") as command:
        until(lambda: effects(database), within_s=TIMEOUT_S)
        command.process.send_signal(number)
        said = command.end(TIMEOUT_S)
    assert (said.code, said.err) == (1, "")
    assert "stopped: stopped by its operator" in said.out
    assert until(lambda: mail.waiting(DLQ) == 2)
    assert operations(database)[0]["status"] == "stopped"


def test_a_broker_or_a_database_that_is_away_is_3_and_one_line(database, mail, tmp_path):
    nobody = "127.0.0.1:1"
    for words, environment in (
        (("ls",), {"OPS_AMQP_URI": f"amqp://ecom-ops:x@{nobody}//"}),
        (("peek", QUEUE), {"OPS_AMQP_URI": f"amqp://ecom-ops:x@{nobody}//"}),
        (("replay", QUEUE, "--all", "--yes"), {"OPS_DATABASE_URL": f"postgresql://a:b@{nobody}/c"}),
        (("groups", QUEUE), {"PAYMENT_DATABASE_URL": f"postgresql://a:b@{nobody}/c"}),
    ):
        said = ecom(*words, **environment)
        assert (said.code, said.out) == (3, ""), said.err
        assert said.err.startswith("ecom: the ")
        assert said.err.count("\n") == 1


def test_a_dlq_that_somebody_works_on_is_3_and_names_him(dead, consumer, database, tmp_path):  # noqa: F811
    consumer.start()
    with started("dlq", "replay", QUEUE, "--all", "--yes", "--rate", "1/h", "--actor", "ann") as command:
        until(lambda: effects(database), within_s=TIMEOUT_S)
        said = ecom("discard", QUEUE, "--to", tmp_path / "a", "--all", "--yes")
        (operation,) = operations(database)
        work = f"ecom dlq replay (`ecom dlq history {operation['operation_id']}` shows it)"
        words = rf"ecom: {DLQ} is being worked on by ann since 20[\d-]+T[\d:.]+Z: {re.escape(work)}\n"
        assert (said.code, bool(re.fullmatch(words, said.err))) == (3, True), said.err
        (one,) = [one for one in json.loads(ecom("ls", "--json").out)["queues"] if one["holder"]]
        assert (one["messages"], one["holder"]["operation_id"]) == (2, str(operation["operation_id"]))
        command.process.send_signal(signal.SIGINT)
        assert command.end(TIMEOUT_S).code == 1


def test_after_a_killed_operator_the_next_finds_every_message(dead, consumer, mail, database):  # noqa: F811
    consumer.start()
    with started("dlq", "replay", QUEUE, "--all", "--yes", "--rate", "1/h") as command:
        until(lambda: effects(database), within_s=TIMEOUT_S)
        command.kill()
    until(lambda: mail.waiting(DLQ) == 2)
    said = ecom("replay", QUEUE, "--all", "--yes")
    assert said.code == 0, said.err
    assert sum(effects(database).values()) == 3
    assert [row["status"] for row in operations(database)] == ["interrupted", "done"]
