"""Running a program as a person at a terminal would."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest


def at_a_terminal(
    command: Sequence[Any], prompts: tuple[str, ...], typed: Sequence[str], **popen: Any
) -> tuple[int, str]:
    """Type each text when a prompt shows; the exit code and all that the terminal showed.

    Skips where the machine has no pseudo-terminals, as a bare chroot without /dev/pts; in CI that is a failure.
    """
    try:
        ours, its = pty.openpty()
    except OSError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"this machine has no pseudo-terminals: {error}")
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, **popen)
    os.close(its)
    shown = ""
    answers = iter(typed)
    with suppress(OSError):  # EIO: it has ended
        while piece := os.read(ours, 1024).decode():
            shown += piece
            if shown.endswith(prompts):
                os.write(ours, next(answers).encode())
    os.close(ours)
    return process.wait(timeout=30), shown
