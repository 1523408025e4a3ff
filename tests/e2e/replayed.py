"""Pages that are replayed: each command, pasted in its order, works and prints what the page says.

A command begins with `    $ `; what it prints stands below it. `<!-- scene: name -->` calls a method: what happens to
the system between two commands. With RUNBOOK=write in the environment a page gets the output of now: look at the
difference before you commit it.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import subprocess
import threading
import uuid
from pathlib import Path
from typing import ClassVar, Self

from tests.e2e.system import ECOM, ROOT, System

OPERATOR_NAME = "ann@ops"
COMMAND, OUTPUT = "    $ ", "    "
COMMAND_LIMIT_S = 120.0

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
    (re.compile(r"\b1[0-9]{12}\b"), "MILLISECONDS"),
    (UUID, "ID"),  # before what may look like a part of it
    (re.compile(r"\b[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}\b"), "ORDER_NO"),
    (re.compile(r"\b[\w.-]+@[\w.-]+"), "WHO"),
    (re.compile(r"x-delivery-count +\d+"), "x-delivery-count N"),
    (re.compile(r" +"), " "),
)


class Shell:
    """A bash into which commands are pasted: what one of them sets, the next ones have."""

    def __init__(self, directory: Path) -> None:
        self._mark = f"ended-{uuid.uuid4().hex}"
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            cwd=directory,
            env={**os.environ, "PATH": f"{ECOM.parent}:{os.environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def paste(self, command: str) -> tuple[int, list[str]]:
        """Run a command; its exit code, and what it printed. One that takes too long ends the shell, with code -9."""
        bash = self._bash
        assert bash.stdin
        assert bash.stdout
        limit = threading.Timer(COMMAND_LIMIT_S, bash.kill)
        limit.start()
        try:
            bash.stdin.write(f"eval {shlex.quote(command)} </dev/null\nprintf '\\n%s %s\\n' {self._mark} $?\n")
            bash.stdin.flush()
            printed: list[str] = []
            for line in bash.stdout:
                mark, _, code = line.partition(" ")
                if mark == self._mark:
                    return int(code), printed
                printed.append(line.rstrip())
            return bash.wait(), printed
        finally:
            limit.cancel()

    def close(self) -> None:
        """End it."""
        self._bash.communicate()


class Replayed:
    """A page's commands, the system they are tried on, and which id of the page is which one here."""

    # Which ends of a command are no fault: 1 is "found something".
    codes: ClassVar[tuple[int, ...]] = (0, 1)

    def __init__(self, system: System, directory: Path) -> None:
        self.system = system
        self.ids: dict[str, str] = {}
        self.wrong: list[str] = []
        self.commands = 0
        self.shell = Shell(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shell.close()

    def replay(self, page: str, section: str = "") -> None:
        """Run the commands of a page, or of its section with this heading.

        Fails with each command that prints something else than the page says.
        """
        path = ROOT / "docs" / page
        text = path.read_text(encoding="utf-8")
        before, heading, rest = text.partition(section) if section else ("", "", text)
        part, border, after = rest.partition("\n## ") if section else (rest, "", "")
        written = self.follow(part)
        if os.environ.get("RUNBOOK") == "write":
            path.write_text(before + heading + written + border + after, encoding="utf-8")
        assert self.wrong == [], "\n\n".join(self.wrong)

    def follow(self, text: str) -> str:
        """Run the commands of a text; returns the text as it should read."""
        page: list[str] = []
        command = None
        said: list[str] = []
        for line in [*text.splitlines(), None]:
            if line is not None and command and line.startswith(OUTPUT) and not line.startswith(COMMAND):
                said.append(line.removeprefix(OUTPUT))
                continue
            if command:
                page += self.paste(command, said)
                command, said = None, []
            if line is None:
                break
            if line.startswith(COMMAND):
                command = line.removeprefix(COMMAND)
                continue
            if scene := re.fullmatch(r"<!-- scene: (\w+) -->", line):
                getattr(self, scene[1])()
            page.append(line)
        return "\n".join(page) + "\n"

    def paste(self, command: str, said: list[str]) -> list[str]:
        """Run a command as it stands on the page, with the ids of this run; the page as it should read."""
        login, node = getpass.getuser(), os.uname().nodename
        real = UUID.sub(lambda found: self.ids.get(found[0], found[0]), command)
        code, printed = self.shell.paste(real)
        printed = [line for line in printed if line]
        self.commands += 1
        if code not in self.codes:
            self.wrong.append(f"$ {real}\nexit {code}: {joined(printed)}")
        if plain(said) != plain(printed):
            self.wrong.append(f"$ {real}\nthe page says:\n{joined(said)}\nit prints:\n{joined(printed)}")
        for known, new in zip(UUID.findall(joined(said)), UUID.findall(joined(printed)), strict=False):
            self.ids.setdefault(known, new)
        # The page is for outsiders: it names no login and no machine.
        return [
            f"{COMMAND}{real}",
            *(f"{OUTPUT}{line.replace(f'{login}@{node}', OPERATOR_NAME)}".rstrip() for line in printed),
        ]


def joined(lines: list[str]) -> str:
    return "\n".join(lines)


def plain(lines: list[str]) -> list[str]:
    """Output without what varies."""
    for pattern, word in VARIES:
        lines = [pattern.sub(word, line).strip() for line in lines]
    return [line for line in lines if line]
