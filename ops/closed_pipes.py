"""Output into a pipe whose reader leaves, as `| head -1` does: it is no fault of the command. Standard library only."""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import Any


class _Pipe(io.FileIO):
    """The writing end of a pipe. When nobody reads it any more, this and all later output is thrown away."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def outlive_readers() -> None:
    """Let this process do its work and end with its own exit code, also when the reader of its output has gone."""
    sys.stdout = _outliving(sys.stdout)
    sys.stderr = _outliving(sys.stderr)


def _outliving(stream: Any) -> Any:
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or no file at all
        return stream
    if not isinstance(stream, io.TextIOWrapper) or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return stream
    stream.flush()
    pipe = _Pipe(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        # As Python opened it: unbuffered where PYTHONUNBUFFERED asks for that.
        pipe if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(pipe),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
