"""Running a program as a person at a terminal would."""

from __future__ import annotations

import codecs
import os
import pty
import subprocess
import termios
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest


def open_terminal() -> tuple[int, int]:
    """Both ends of a pseudo-terminal: ours and the program's.

    Skips where the machine has none, as a bare chroot without /dev/pts; in CI that is a failure.
    """
    try:
        return pty.openpty()
    except OSError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"this machine has no pseudo-terminals: {error}")


def at_a_terminal(
    command: Sequence[Any], prompts: tuple[str, ...], typed: Sequence[str], columns: int | None = None, **popen: Any
) -> tuple[int, str]:
    """Type each text when a prompt shows; the exit code and all that the terminal showed."""
    ours, its = open_terminal()
    if columns:
        termios.tcsetwinsize(its, (24, columns))
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, **popen)
    os.close(its)
    shown = ""
    answers = iter(typed)
    text = codecs.getincrementaldecoder("utf-8")()  # a letter may arrive in two pieces
    with suppress(OSError):  # EIO: it has ended
        while piece := os.read(ours, 1024):
            shown += text.decode(piece)
            if prompts and shown.endswith(prompts):
                os.write(ours, next(answers).encode())
    os.close(ours)
    return process.wait(timeout=30), shown
