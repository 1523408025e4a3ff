"""A developer drives an order from the shell, and sees what it did."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker
from sqlalchemy import make_url

from tests.e2e.system import ECOM, ROOT, System, eventually
from tests.terminal import at_a_terminal
from topology.table import QUEUES, RPC_EXCHANGE

NAMEKO = str(Path(sys.executable).with_name("nameko"))
OURS = [sys.executable, "-m", "ops.cli.shell"]
SHELLS = {"nameko shell": lambda uri: [NAMEKO, "shell", "--broker", uri], "make shell": lambda uri: OURS}

PREAMBLE = """\
import json
def say(value): print("say:", json.dumps(value))

"""


def run(command: list[str], script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell with a script on its standard input."""
    whole = {**os.environ, **environment}
    return subprocess.run(
        command, input=script, capture_output=True, text=True, timeout=60, cwd=ROOT, env=whole, check=False
    )


@pytest.fixture(params=SHELLS)
def shell(system: System, request: pytest.FixtureRequest) -> Callable[[str], list[Any]]:
    """Runs a script in a shell: all that it printed by `say`."""

    def answers(script: str) -> list[Any]:
        ended = run(SHELLS[request.param](system.settings.amqp_uri_of("shell")), PREAMBLE + script)
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in re.findall(r"say: (.*)", ended.stdout)]

    return answers


@pytest.fixture
def made(shell: Callable[[str], list[Any]]) -> dict[str, Any]:
    """An order made in the shell: its id, and the body it was made of."""
    sku = f"lamp-{uuid.uuid4().hex[:8]}"
    items = [{"sku": sku, "quantity": 2, "unit_price": 1999}]
    order = {"currency": "EUR", "payment_method": "mock_ok", "items": items}
    (answer,) = shell(
        f"""\
offer = n.rpc.catalog_service.put_offer("{sku}", 1999)
stock = n.rpc.inventory_service.put_stock("{sku}", 10)
say(n.rpc.order_service.create_order({order}, "{sku}"))
"""
    )
    assert answer["status"] == 201
    return {**order, "total": answer["body"]["total"], "order_id": answer["body"]["order_id"], "sku": sku}


def test_an_order_of_the_shell_is_settled_and_belongs_to_the_user_shell(
    system: System, shell: Callable[[str], list[Any]], made: dict[str, Any]
) -> None:
    system.wait_quiet()
    order, timeline, stock = shell(
        f"""\
say(n.rpc.order_service.get_order("{made["order_id"]}"))
say(n.rpc.order_service.timeline("{made["order_id"]}"))
say(n.rpc.inventory_service.get_stock("{made["sku"]}"))
"""
    )
    assert order["status"] == "PAID"
    events = [step["event"] for step in timeline["steps"]]
    assert (events[0], events[-1]) == ("order.created", "inventory.committed")
    # They arrive in two queues, so either may be handled first.
    assert sorted(events[1:-1]) == ["inventory.reserved", "payment.succeeded"]
    assert {step["by"] for step in timeline["steps"]} == {"shell"}
    assert (stock["on_hand"], stock["reserved"]) == (8, 0)
    flow = system.flow()
    assert flow.send("GET", f"/api/orders/{made['order_id']}").status_code == 404  # it is no customer's
    assert flow.get(f"/api/orders/{made['order_id']}", user="operator")["status"] == "PAID"


def test_an_event_told_from_the_shell_is_heard_and_one_that_was_heard_before_changes_nothing(
    system: System, shell: Callable[[str], list[Any]], made: dict[str, Any]
) -> None:
    system.wait_quiet()
    heard = "SELECT count(*) AS times FROM consumed_messages WHERE consumer = 'q.inventory.order-created'"
    before = system.databases.rows("inventory", heard)[0]["times"]
    payload = {name: made[name] for name in ("order_id", "currency", "total", "items", "payment_method")}
    shell(f'n.dispatch_event("ecom", "order.created", {payload})\n')
    eventually(
        lambda: system.databases.rows("inventory", heard)[0]["times"],
        lambda times: times == before + 1,
        otherwise="the event was not heard",
    )
    system.wait_quiet()
    stock, timeline = shell(
        f"""\
say(n.rpc.inventory_service.get_stock("{made["sku"]}"))
say(n.rpc.order_service.timeline("{made["order_id"]}"))
"""
    )
    assert (stock["on_hand"], stock["reserved"]) == (8, 0)
    assert len(timeline["steps"]) == 4


def test_the_shell_speaks_for_somebody_else_by_the_context_of_its_calls(
    system: System, shell: Callable[[str], list[Any]]
) -> None:
    flow = system.flow()
    flow.stock("shell-lamp", 1)
    order_id = flow.order("shell-lamp")["order_id"]
    system.wait_quiet()
    (order,) = shell(
        f"""\
n.rpc._worker_ctx.data.update(user_id="ann", roles=["auditor"])
say(n.rpc.order_service.get_order("{order_id}"))
"""
    )
    assert order["order_id"] == order_id


def test_a_script_prints_what_it_prints_and_nothing_else(system: System) -> None:
    ended = run(OURS, "for i in range(2):\n    print(i)\nprint('sent')\n1 + 1\n")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n1\nsent\n", "")


def test_a_script_ends_at_its_first_error_which_is_shown_once(system: System) -> None:
    ended = run(OURS, 'n.rpc.order_service.get_order("none")\nprint("not reached")\n')
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("Traceback") == 1
    assert "NotFound There is no order none." in ended.stderr


def test_a_shell_can_read_neither_the_calls_nor_the_replies_of_others(system: System) -> None:
    with closing(pika.BlockingConnection(pika.URLParameters(system.settings.amqp_uri_of("shell")))) as connection:
        queue = f"rpc.reply-standalone_rpc_proxy-{uuid.uuid4()}"
        for key in ("#", "auth_service.*", "reply.gateway.#", "*.*.*"):
            channel = connection.channel()
            channel.queue_declare(queue, exclusive=True)
            with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
                channel.queue_bind(queue, RPC_EXCHANGE, key)
        for name in (queue_.name for queue_ in QUEUES):
            with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
                connection.channel().basic_get(name)


@pytest.mark.parametrize("change", [{"port": 1}, {"password": "wrong"}, {"database": "no-such-vhost"}])
def test_without_its_broker_the_shell_says_so_in_one_line(system: System, change: dict[str, Any]) -> None:
    uri = make_url(system.settings.amqp_uri_of("shell")).set(**change).render_as_string(hide_password=False)
    ended = run(OURS, "", SHELL_AMQP_URI=uri)
    assert ended.returncode == 3
    assert re.fullmatch(r"ecom: no shell without a broker: .*\n", ended.stderr)


def test_on_a_terminal_the_shell_says_how_to_begin_and_shows_no_password(system: System) -> None:
    environment = {**os.environ, "TERM": "dumb"}
    typed = ("n.rpc.order_service.list_orders(1).keys()\n", "\x04")
    code, shown = at_a_terminal(OURS, (">>> ",), typed, cwd=ROOT, env=environment)
    assert code == 0
    assert 'n.rpc.order_service.get_order("...")' in shown
    assert "dict_keys(['items', 'next_cursor'])" in shown
    assert str(make_url(system.settings.amqp_uri_of("shell")).password) not in shown
    assert "Traceback" not in shown


def test_flow_runs_an_order_to_its_end_and_prints_its_timeline(system: System) -> None:
    sku = f"flow-{uuid.uuid4().hex[:8]}"
    script = f"""\
_ = flow.stock("{sku}", 10)
declined = flow.order("{sku}", 2, payment="mock_declined")
paid = flow.order("{sku}", 2)
cancelled = flow.cancel(paid["order_id"])
print("ends:", declined["status"], paid["status"], cancelled["status"])
"""
    ended = run(OURS, script)
    assert ended.returncode == 0, ended.stderr
    assert "ends: CANCELLED PAID CANCELLED" in ended.stdout
    for event in ("payment.failed", "payment.succeeded", "cancel", "payment.refunded"):
        assert event in ended.stdout, ended.stdout


def test_flow_makes_a_message_that_cannot_succeed_in_one_queue_alone(system: System) -> None:
    ended = run(OURS, 'print("id:", flow.dead("q.order.payment-result"))\n')
    assert ended.returncode == 0, ended.stderr
    message_id = re.findall(r"id: (\S+)", ended.stdout)[0]
    dead = eventually(system.deaths, bool)
    assert [(row["queue"], row["reason"]) for row in dead] == [("q.order.payment-result", "unknown_type")]
    command = [ECOM, "dlq", "discard", "q.order.payment-result", "--id", message_id, "--yes", "--to"]
    subprocess.run([*command, system.directory / "flow-dead.jsonl"], check=True, capture_output=True, cwd=ROOT)
