"""The command line keeps its promises: quick help, exit codes, one line for what cannot be done, JSON for programs."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import click
import pytest

from ops.cli import home, outbox, topology
from ops.cli import main as cli
from ops.domain import dlq_of
from ops.local import stack
from shared import version
from shared.errors import CannotWork
from topology import declare
from topology.services import PUBLISHERS
from topology.table import BY_NAME

HEAVY = {"alembic", "amqp", "eventlet", "kombu", "nameko", "pika", "rich", "sqlalchemy", "socket", "ssl"}


def ecom(*arguments):
    """The command line's exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return ended.value.code or 0


def commands(group):
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {words}", found) for words, found in commands(command))
        else:
            yield name, command


def test_help_needs_nothing_heavy():
    """`ecom run` patches the standard library first of all, so nothing may open sockets before it."""
    code = "import sys, ops.cli.main; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True, env=unmeasured
    )
    assert HEAVY & set(ended.stdout.split()) == set()


@pytest.mark.parametrize(("words", "command"), list(commands(cli.ecom)))
def test_every_command_explains_itself_and_takes_json(words, command, capsys):
    assert ecom(*words.split(), "--help") == 0
    assert "--json" in capsys.readouterr().out
    assert command.help


def groups(group, words=()):
    """Every group with the words that call it."""
    yield words
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from groups(command, (*words, name))


@pytest.mark.parametrize("words", list(groups(cli.ecom)))
def test_the_help_of_a_group_shows_a_whole_sentence_for_each_command(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert ecom(*words, "--help") == 0
    _, _, listed = capsys.readouterr().out.partition("Commands:\n")
    lines = listed.splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"  [a-z-]+ +[A-Z].*[^.]\.", line), line


@pytest.mark.parametrize(
    "arguments", [["nope"], ["run", "nope"], ["migrate", "gateway"], ["topology", "apply", "--nope"]]
)
def test_misuse_is_2(arguments):
    assert ecom(*arguments) == 2


def test_a_setting_that_is_unusable_is_3_and_one_line(monkeypatch, capsys):
    monkeypatch.setenv("ECOM_ENV", "staging")
    assert ecom("config", "--json") == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "ecom: ECOM_ENV must be development or production, not 'staging'\n"


def test_a_defect_of_ours_shows_its_traceback_and_does_not_look_like_a_finding(monkeypatch, capsys):
    monkeypatch.setattr(cli, "environment", lambda: 1 / 0)
    assert ecom("config") == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(("wait", "tries", "code"), [("0", 1, 3), ("1", 1, 3), ("5", 3, 0)])
def test_declaring_is_tried_again_for_as_long_as_asked_while_the_broker_is_away(monkeypatch, capsys, wait, tries, code):
    now, outcomes = [0.0], [CannotWork("the broker is away"), CannotWork("the broker is away"), None]

    def apply(uri, queue_type):
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome
        return []

    monkeypatch.setattr(declare, "apply", apply)
    monkeypatch.setattr(topology, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=partial(_later, now)))
    assert ecom("topology", "apply", "--wait", wait) == code
    assert 3 - len(outcomes) == tries
    said = capsys.readouterr()
    assert said.err.count("tries again: the broker is away") == tries - 1
    assert ("applied: " in said.out) is (code == 0)


def _later(now, seconds):
    now[0] += seconds


def test_the_settings_are_printed_without_secrets(monkeypatch, capsys):
    monkeypatch.setenv("AMQP_URI", "amqp://user:hidden@broker//")
    assert ecom("config") == 0
    as_table = capsys.readouterr().out
    assert ecom("config", "--json") == 0
    as_json = capsys.readouterr().out
    assert json.loads(as_json)["amqp_uri"] == "amqp://user:***@broker//"
    assert "amqp://user:***@broker//" in as_table
    assert "hidden" not in as_table + as_json


HELD = {
    "id": 7,
    "message_id": "m-1",
    "aggregate_id": "a-1",
    "event_type": "order.created",
    "created_at": "2026-01-14T10:30:00Z",
    "attempts": 3,
    "last_error": "returned: NO_ROUTE [312]",
    "held_until": "2026-01-14T10:30:05Z",
    "behind": 2,
}


@pytest.fixture
def outboxes(monkeypatch):
    """What each service's database says, or the error it raises."""
    said = {service: {"unpublished": 0, "oldest_age_s": 0.0, "held": []} for service in PUBLISHERS}

    def outbox_of(service, url, limit):
        if isinstance(said[service], Exception):
            raise said[service]
        return said[service]

    monkeypatch.setattr(outbox, "_outbox_of", outbox_of)
    for service in PUBLISHERS:
        monkeypatch.setenv(f"{service.upper()}_DATABASE_URL", "postgresql://nowhere/x")
    return said


def test_outboxes_without_a_held_row_are_fine_whatever_waits(outboxes, capsys):
    outboxes["order"]["unpublished"] = 12
    assert ecom("outbox", "ls") == 0
    assert "order" in capsys.readouterr().out


def test_a_held_row_is_a_finding_and_says_why_on_one_line(outboxes, capsys):
    outboxes["order"].update(unpublished=3, held=[HELD])
    assert ecom("outbox", "ls") == 1
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "order.created" in line]
    assert row.split()[:3] == ["order", "7", "order.created"]
    assert "returned: NO_ROUTE [312]" in row
    assert ecom("outbox", "ls", "--json") == 1
    assert json.loads(capsys.readouterr().out)["outboxes"][0]["held"] == [HELD]


def test_a_database_that_is_away_does_not_hide_the_others(outboxes, capsys):
    outboxes["order"].update(unpublished=3, held=[HELD])
    outboxes["payment"] = CannotWork("the database of payment cannot be used: gone")
    assert ecom("outbox", "ls") == 3
    said = capsys.readouterr()
    assert "order.created" in said.out
    assert said.err == "ecom: the database of payment cannot be used: gone\n"


def test_a_database_that_is_not_set_is_named(monkeypatch, capsys):
    monkeypatch.delenv("ORDER_DATABASE_URL", raising=False)
    assert ecom("outbox", "ls") == 3
    assert capsys.readouterr().err == (
        "ecom: ORDER_DATABASE_URL is not set; `make up` starts a stack that this command finds\n"
    )


def test_the_version_is_shown(capsys):
    assert ecom("--version") == 0
    assert capsys.readouterr().out == f"ecom {version.from_setup()}\n"


@pytest.mark.parametrize("command", ["up", "down", "demo", "status"])
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_command_of_the_local_stack_is_refused_in_one_line_where_it_is_absent(command, words, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ops.local", None)
    monkeypatch.delitem(sys.modules, "ops.local.commands", raising=False)
    assert ecom(command, *words) == 3
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"ecom: `ecom {command}` works in a checkout of the project only\n")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize("words", ["ecom dlq peek q.pay", "ecom dlq history --queue q.pay"])
def test_a_shell_completes_the_names_of_queues_and_dlqs(shell, words, monkeypatch, capsys):
    place = str(len(words.split()) - 1)
    for name, value in (("_ECOM_COMPLETE", f"{shell}_complete"), ("COMP_WORDS", words), ("COMP_CWORD", place)):
        monkeypatch.setenv(name, value)
    assert ecom() == 0
    found = re.findall(r"q\.\S+", capsys.readouterr().out)
    assert [name.removeprefix("plain,") for name in found] == [
        name for queue in BY_NAME for name in dlq_of(queue) if name.startswith("q.pay")
    ]


@pytest.fixture
def running(monkeypatch, tmp_path):
    """A stack that this process runs, as `make up` would."""
    monkeypatch.setattr(stack, "RUN", tmp_path)
    monkeypatch.setenv("ECOM_STACK", str(tmp_path / "main"))
    for name in stack.SETTINGS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    one = stack.Stack("main")
    with one.owned() as ours:
        assert ours
        one.keep(
            environment={
                "AMQP_URI": "amqp://a:b@here/x",
                "OPS_AMQP_URI": "amqp://ecom-ops:b@here/x",
                "ORDER_DATABASE_URL": "postgresql://order@here/order",
            }
        )
        yield


def test_settings_that_are_missing_come_from_the_running_stack(running, monkeypatch):
    assert home.read("operator").amqp_uri == "amqp://a:b@here/x"
    monkeypatch.setenv("AMQP_URI", "amqp://c:d@there/y")
    settings = home.read("operator")
    assert settings.amqp_uri == "amqp://c:d@there/y"
    assert settings.database_url("order").endswith("order@here/order")


def test_the_users_of_the_running_stack_are_not_used_with_another_broker(running, monkeypatch):
    assert home.read("operator").amqp_uri_of("ops") == "amqp://ecom-ops:b@here/x"
    monkeypatch.setenv("AMQP_URI", "amqp://c:d@there/y")
    assert home.read("operator").amqp_uri_of("ops") == "amqp://c:d@there/y"


def test_a_setting_that_a_file_holds_wins_over_the_running_stack(running, monkeypatch, tmp_path):
    file = tmp_path / "uri"
    file.write_text("amqp://c:d@there/y")
    monkeypatch.setenv("AMQP_URI_FILE", str(file))
    assert home.read("operator").amqp_uri == "amqp://c:d@there/y"


def test_a_setting_that_neither_has_is_missing_without_advice_to_start_a_stack(running, capsys):
    assert ecom("outbox", "ls") == 3
    assert "INVENTORY_DATABASE_URL is not set\n" in capsys.readouterr().err


def test_a_stack_that_has_stopped_gives_no_settings(running, monkeypatch):
    monkeypatch.setattr(home, "_is_locked", lambda path: False)
    assert home.running_stack() == {}


def test_outside_a_checkout_no_stack_is_looked_for(running, monkeypatch, tmp_path):
    monkeypatch.setattr(home, "ROOT", tmp_path)
    assert home.running_stack() == {}
    assert home.hint() == ""
