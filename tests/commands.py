"""`ecom` as an operator runs it: a process of its own, with what it answered, how long it took and how big it grew.

Waits by polling, so that a process patched by eventlet goes on with its other work meanwhile. Where only what it says
and does is asked, it is run in the test's own process, which needs no second start of everything.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from ops.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent
ECOM = Path(sys.executable).with_name("ecom")
POLL_S = 0.01


@dataclass(frozen=True)
class Ended:
    """How a command ended. `peak_bytes` is the most memory that a process of its own was seen to have."""

    code: int
    out: str
    err: str
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def answer(self) -> Any:
        """Its output with --json."""
        assert self.out, f"exit {self.code}: {self.err}"
        return json.loads(self.out, parse_constant=pytest.fail)


class Command:
    """One `ecom` under way."""

    def __init__(self, *words: object) -> None:
        self.words = [str(ECOM), *map(str, words)]
        self._out, self._err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._began = time.monotonic()
        self._peak = 0
        self.process = subprocess.Popen(
            self.words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err
        )
        self._watched = psutil.Process(self.process.pid)

    def running(self) -> bool:
        """Whether it has not ended; looks at its memory, too."""
        with suppress(psutil.Error):  # it may just have ended
            self._peak = max(self._peak, self._watched.memory_info().rss)
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL it."""
        self.process.kill()
        self.process.wait()

    def end(self, patience_s: float = 120.0) -> Ended:
        """Wait until it has ended. One that does not is killed, and fails the test."""
        deadline = self._began + patience_s
        while self.running():
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{' '.join(self.words)} did not end in {patience_s:.0f} s")
            time.sleep(POLL_S)
        seconds = time.monotonic() - self._began
        return Ended(self.process.returncode, _text(self._out), _text(self._err), seconds, self._peak)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.kill()
        self._out.close()
        self._err.close()


@contextmanager
def started(*words: object) -> Iterator[Command]:
    """An `ecom` that is gone when the block is left."""
    command = Command(*words)
    try:
        yield command
    finally:
        command.close()


def ecom(*words: object, code: int | None = 0, patience_s: float = 120.0) -> Ended:
    """Run `ecom` to its end, which must be with this exit code; None for any."""
    with started(*words) as command:
        return _checked(command.end(patience_s), words, code)


def ecom_here(*words: object, code: int | None = 0, typed: str = "", **environment: str) -> Ended:
    """The same in this process, with this standard input and environment. Not for signals, nor for starts."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", io.StringIO(typed))
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
    return _checked(Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue()), words, code)


def _checked(ended: Ended, words: Sequence[object], code: int | None) -> Ended:
    said = f"ecom {' '.join(map(str, words))}: exit {ended.code}\n{ended.out}{ended.err}"
    assert code is None or ended.code == code, said
    assert "Traceback" not in ended.err, said
    return ended


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read())
