"""Proving an export: whether a CSV is, byte for byte, what was exported. Needs the key and no database."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shared import seals
from shared.exports import MANIFEST, manifest_line

# A manifest is a few hundred bytes; filters are the longest of it.
LONGEST_MANIFEST = 64 * 1024
# How much is read between two reports of progress.
REPORT_EVERY = 1024 * 1024


@dataclass(frozen=True)
class Proof:
    """The result for a file: intact when `wrong` is empty. `rows` counts the rows in it."""

    wrong: str
    rows: int
    sha256: str  # of what stands before the manifest
    manifest: dict[str, Any] | None  # to be believed only of a file that is intact


def prove(file: Path, keys: Sequence[str], seen: Callable[[int, int], None] = lambda read, of: None) -> Proof:
    """Read a file once, in constant memory. `seen` is called with the number of bytes read and of all bytes."""
    with file.open("rb") as opened:
        end, last = _last_line(opened)
        manifest = _manifest(last)
        size = end if manifest else end + len(last)
        opened.seek(0)
        reader = _Reader(opened, size, seen)
        rows = reader.count_rows()
    proof = rows, reader.sha256(), manifest
    if manifest is None:
        return Proof("it does not end with a manifest: it was cut off, or something was added", *proof)
    key = seals.key_of(keys, str(manifest.get("key_id")))
    if key is None:
        wrong = f"its manifest was signed with the key {manifest.get('key_id')}, which AUDIT_KEY does not hold"
    elif last != manifest_line(manifest) or not seals.same(str(manifest.get("mac")), seals.manifest_mac(key, manifest)):
        wrong = "its manifest was altered"
    elif reader.sha256() == manifest["sha256"]:
        wrong = ""
    elif rows != manifest["rows"]:
        how = "are missing" if rows < manifest["rows"] else "were added"
        wrong = f"it has {rows:,} rows and its manifest says {manifest['rows']:,}: lines {how}"
    else:
        wrong = f"it has its {rows:,} rows, and some of their bytes were altered"
    return Proof(wrong, *proof)


def _last_line(opened: BinaryIO) -> tuple[int, bytes]:
    """Where the last line begins, and the line."""
    size = opened.seek(0, os.SEEK_END)
    begin = max(size - LONGEST_MANIFEST, 0)
    opened.seek(begin)
    tail = opened.read()
    place = tail.rstrip(b"\r\n").rfind(b"\n") + 1
    return begin + place, tail[place:]


def _manifest(line: bytes) -> dict[str, Any] | None:
    """The manifest in a line, or None when there is none that can be read."""
    try:
        (cells,) = csv.reader([line.decode()], strict=True)
        name, reported = cells[:2]
        manifest = json.loads(reported)
    except (ValueError, RecursionError, csv.Error):
        return None
    is_manifest = isinstance(manifest, dict) and type(manifest.get("rows")) is int and "sha256" in manifest
    return manifest if name == MANIFEST and is_manifest else None


class _Reader:
    """Reads the first bytes of a file once: hashes them, and counts the rows."""

    def __init__(self, opened: BinaryIO, size: int, seen: Callable[[int, int], None]) -> None:
        self._opened = opened
        self._size = size
        self._seen = seen
        self._hash = hashlib.sha256()

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def count_rows(self) -> int:
        """The number of rows below the header. After a line that cannot be read, the rest is only hashed."""
        lines = self._lines()
        count = 0
        try:
            count = sum(1 for _ in csv.reader(lines)) - 1
        except csv.Error:
            for _ in lines:
                pass
        return max(count, 0)

    def _lines(self) -> Iterator[str]:
        read = reported = 0
        while read < self._size and (line := self._opened.readline(min(self._size - read, REPORT_EVERY))):
            self._hash.update(line)
            read += len(line)
            if read - reported >= REPORT_EVERY or read == self._size:
                reported = read
                self._seen(read, self._size)
            yield line.decode("utf-8", "replace")
