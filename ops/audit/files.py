"""Proving an export: whether a CSV is, byte for byte, what was exported. Needs the key and no database.

Editors and spreadsheets write a file again in their own way: other line ends, another separator, no byte order mark. If
a file is not intact, its cells are written once more as an export writes them. That tells a file whose cells are those
that were exported from one whose cells were altered.
"""

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
from shared.exports import BOM, MANIFEST, Quoting, csv_lines, manifest_line

# A manifest is a few hundred bytes; filters are the longest of it.
LONGEST_MANIFEST = 64 * 1024
# How much is read between two reports of progress.
REPORT_EVERY = 1024 * 1024

# Separators that spreadsheets write, an export's own first.
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}

# How an export quotes its cells, and how it did up to version 0.2.
QUOTINGS: tuple[Quoting, ...] = (csv.QUOTE_ALL, csv.QUOTE_MINIMAL)

# What a file is that begins with these bytes.
OTHER_FILES = {
    b"PK\x03\x04": "a workbook of a spreadsheet, not the CSV that was downloaded",
    b"\xff\xfe": "UTF-16 text that another program saved, not the UTF-8 that was downloaded",
}


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
        begin = opened.read(4)
        end, last = _last_line(opened)
        separator, manifest = _manifest(last)
        size = end if manifest else end + len(last)
        opened.seek(0)
        reader = _Reader(opened, size, separator, seen)
        rows = reader.count_rows()
    proof = rows, reader.sha256(), manifest
    if manifest is None:
        other = next((words for first, words in OTHER_FILES.items() if begin.startswith(first)), None)
        ending = "it does not end with a manifest: it was cut off, or something was added"
        return Proof(f"it is {other}" if other else ending, *proof)
    key = seals.key_of(keys, str(manifest.get("key_id")))
    if key is None:
        wrong = f"its manifest was signed with the key {manifest.get('key_id')}, which AUDIT_KEY does not hold"
    elif not seals.same(str(manifest.get("mac")), seals.manifest_mac(key, manifest)):
        wrong = "its manifest was altered"
    elif reader.sha256() == manifest["sha256"] and last in _manifest_lines(manifest):
        wrong = ""
    else:
        wrong = _what_changed(file, separator, begin.startswith(BOM), last, rows, manifest)
    return Proof(wrong, *proof)


def _what_changed(file: Path, separator: str, has_bom: bool, last: bytes, rows: int, manifest: dict[str, Any]) -> str:
    """What is wrong with a file whose manifest is genuine."""
    changes = []
    if separator != ",":
        changes.append(f"its separators were changed from comma to {SEPARATORS[separator]}")
    if not last.endswith(b"\n"):
        changes.append("its last line end was removed")
    elif not last.endswith(b"\r\n"):
        changes.append("its line ends were changed from CRLF to LF")
    hashes = _rewritten(file, separator)
    if manifest["sha256"] in hashes:
        had_bom = hashes.index(manifest["sha256"]) % 2 == 1
        if had_bom != has_bom:
            what = "removed from" if had_bom else "added to"
            changes.append(f"a byte order mark (BOM) was {what} its beginning")
        how = ", ".join(changes) or "its quotes, line ends or empty lines were changed"
        return f"{how}; its cells are those that were exported"
    if rows != manifest["rows"]:
        how = "are missing" if rows < manifest["rows"] else "were added"
        wrong = f"it has {rows:,} rows and its manifest says {manifest['rows']:,}: lines {how}"
    else:
        wrong = f"it has its {rows:,} rows, and some of their bytes were altered"
    again = f"another program, such as a spreadsheet, saved it again ({', '.join(changes)}); "
    return (again if changes else "") + wrong


def _rewritten(file: Path, separator: str) -> list[str]:
    """The SHA-256 of what stands before the manifest, written as an export writes it.

    For each kind of quotes without a BOM, and then with one. Empty for a file whose cells cannot be read.
    """
    checksums = [(quoting, hashlib.sha256(begin)) for quoting in QUOTINGS for begin in (b"", BOM)]
    previous: list[str] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            for row in filter(None, csv.reader(opened, delimiter=separator, strict=True)):
                for quoting, checksum in checksums if previous else ():
                    checksum.update(csv_lines([previous], quoting))
                previous = row
    except (ValueError, csv.Error):
        return []
    return [checksum.hexdigest() for _, checksum in checksums]


def _manifest_lines(manifest: dict[str, Any]) -> list[bytes]:
    return [manifest_line(manifest, quoting) for quoting in QUOTINGS]


def _last_line(opened: BinaryIO) -> tuple[int, bytes]:
    """Where the last line begins, and the line."""
    size = opened.seek(0, os.SEEK_END)
    begin = max(size - LONGEST_MANIFEST, 0)
    opened.seek(begin)
    tail = opened.read()
    place = tail.rstrip(b"\r\n").rfind(b"\n") + 1
    return begin + place, tail[place:]


def _manifest(line: bytes) -> tuple[str, dict[str, Any] | None]:
    """The separator of a line and the manifest in it, or None when there is none that can be read."""
    for separator in SEPARATORS:
        try:
            (cells,) = csv.reader([line.decode()], delimiter=separator, strict=True)
            name, reported = cells[:2]
            manifest = json.loads(reported)
        except (ValueError, RecursionError, csv.Error):
            continue
        is_manifest = isinstance(manifest, dict) and type(manifest.get("rows")) is int and "sha256" in manifest
        if name == MANIFEST and is_manifest:
            return separator, manifest
    return ",", None


class _Reader:
    """Reads the first bytes of a file once: hashes them, and counts the rows."""

    def __init__(self, opened: BinaryIO, size: int, separator: str, seen: Callable[[int, int], None]) -> None:
        self._opened = opened
        self._size = size
        self._separator = separator
        self._seen = seen
        self._hash = hashlib.sha256()

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def count_rows(self) -> int:
        """The number of rows below the header. After a line that cannot be read, the rest is only hashed."""
        lines = self._lines()
        count = 0
        try:
            count = sum(1 for _ in csv.reader(lines, delimiter=self._separator)) - 1
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
