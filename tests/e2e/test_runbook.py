"""Every command of the runbook, pasted in its order, works and prints what the page says.

With RUNBOOK=write in the environment the page gets the output of now: look at the difference before you commit it.
"""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import uuid
from pathlib import Path

import pytest

from shared.envelope import envelope
from shared.events import CommitRequested, Identity, ReleaseRequested
from shared.ids import new_trace_id
from tests.e2e.broker import Publishers
from tests.e2e.system import ECOM, ROOT, System, eventually

PAGE = ROOT / "docs" / "operations.md"
SECTION = "## Dead messages\n"
OPERATOR_NAME = "ann@ops"
OPERATOR = Identity("operator", ("operator",))

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# What is another at each run, and what stands for it.
VARIES = (
    (re.compile(r"─+"), ""),
    (re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01"), "TRACEPARENT"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "SUM"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "TRACE"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
    (re.compile(r"\b\d+ (s|min|h|d) ago"), "AGO"),
    (re.compile(r"\b1[0-9]{9}\b"), "SECONDS"),
    (re.compile(r"\b[\w.-]+@[\w.-]+"), "WHO"),
    (re.compile(r"x-delivery-count +\d+"), "x-delivery-count N"),
    (UUID, "ID"),
    (re.compile(r" +"), " "),
)


class Runbook:
    """The page's commands, the system they are tried on, and which id of the page is which one here."""

    def __init__(self, system: System, directory: Path) -> None:
        self.system = system
        self.directory = directory
        self.orders = [uuid.uuid4() for _ in range(3)]
        self.nobodys = uuid.uuid4()
        self.ids: dict[str, str] = {}
        self.wrong: list[str] = []

    def dead(self) -> None:
        """Three commits of what was never reserved, a release that breaks its schema, and one that is no JSON."""
        self.system.databases.run("ops", "TRUNCATE operations, operation_messages")  # what other tests did
        broken = envelope("order_service", ReleaseRequested(self.nobodys, "payment_failed"), new_trace_id(), OPERATOR)
        body = broken.to_json().replace('"payment_failed"', '"payment failed"')
        with Publishers(self.system.amqp_uri) as publishers:
            for sent, order_id in enumerate(self.orders, start=1):
                event = envelope("order_service", CommitRequested(order_id), new_trace_id(), OPERATOR)
                publishers.publish(event.type, event.to_json().encode())
                eventually(lambda: self.written("q.inventory.commit-requested"), lambda n: n == sent)  # noqa: B023
            publishers.publish(broken.type, body.encode())
            eventually(lambda: self.written("q.inventory.release-requested"), lambda n: n == 1)
            publishers.publish(broken.type, b"{no JSON")
        eventually(lambda: self.written("q.inventory.release-requested"), lambda n: n == 2)
        eventually(lambda: sum(self.system.dead_letters().values()), lambda n: n == 5)

    def mended(self) -> None:
        """The reservations are there now."""
        flow = self.system.flow()
        flow.stock("runbook", 10)
        for order_id in self.orders:
            items = {"order_id": str(order_id), "items": [{"sku": "runbook", "quantity": 1}]}
            flow.send("POST", "/api/stocks/reserve", items, user="admin").raise_for_status()

    def written(self, queue: str) -> int:
        """How many deaths in a queue are written down."""
        return sum(row["queue"] == queue for row in self.system.deaths())

    def follow(self, text: str) -> str:
        """Run the commands of a page; returns the page as it should read."""
        page = []
        lines = iter(text.splitlines())
        command = None
        said: list[str] = []
        for line in lines:
            if line.startswith("    ") and (command or line.startswith("    $ ")):
                if line.startswith("    $ "):
                    page += self.paste(command, said)
                    command, said = line[6:], []
                else:
                    said.append(line[4:])
            else:
                page += self.paste(command, said)
                command, said = None, []
                scene = re.fullmatch(r"<!-- scene: (\w+) -->", line)
                if scene:
                    getattr(self, scene[1])()
                page.append(line)
        return "\n".join(page) + "\n"

    def paste(self, command: str | None, said: list[str]) -> list[str]:
        """Run a command as it stands on the page, with the ids of this run; the page as it should read."""
        if command is None:
            return []
        login, node = getpass.getuser(), os.uname().nodename
        real = UUID.sub(lambda found: self.ids.get(found[0], found[0]), command)
        environment = {**os.environ, "PATH": f"{ECOM.parent}:{os.environ['PATH']}"}
        ended = subprocess.run(
            ["bash", "-c", real],
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        printed = [line.rstrip() for line in ended.stdout.splitlines()]
        printed = [line for line in printed if line]
        if ended.returncode not in (0, 1):
            self.wrong.append(f"$ {real}\nexit {ended.returncode}: {ended.stdout}")
        if plain(said) != plain(printed):
            self.wrong.append(f"$ {real}\nthe page says:\n{joined(said)}\nit prints:\n{joined(printed)}")
        for known, new in zip(UUID.findall(joined(said)), UUID.findall(joined(printed)), strict=False):
            self.ids.setdefault(known, new)
        # The page is for outsiders: it names no login and no machine.
        return [
            f"    $ {real}",
            *(f"    {line.replace(f'{login}@{node}', OPERATOR_NAME)}".rstrip() for line in printed),
        ]


def joined(lines: list[str]) -> str:
    return "\n".join(lines)


def plain(lines: list[str]) -> list[str]:
    """Output without what varies."""
    for pattern, word in VARIES:
        lines = [pattern.sub(word, line).strip() for line in lines]
    return [line for line in lines if line]


@pytest.mark.timeout(300)  # some forty commands, one after the other
def test_every_command_of_the_runbook_prints_what_the_page_says(system: System, tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, section, runbook = text.partition(SECTION)
    runbook, after = re.match(r"(.*?)(?=^## |\Z)(.*)", runbook, re.DOTALL | re.MULTILINE).groups()  # type: ignore[union-attr]
    book = Runbook(system, tmp_path)
    written = book.follow(runbook)
    # The release that was corrected left a tombstone for an order that never was.
    assert system.databases.run("inventory", "DELETE FROM reservations WHERE order_id = :id", id=book.nobodys) == 1
    if os.environ.get("RUNBOOK") == "write":
        PAGE.write_text(before + section + written + after, encoding="utf-8")
    assert book.wrong == [], "\n\n".join(book.wrong)
    assert runbook.count("    $ ecom dlq") >= 20
