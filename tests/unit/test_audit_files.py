"""An export proves itself: whatever is done to its bytes is found, with nothing but the key."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import secrets
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ops.audit import files
from ops.audit.files import Proof, prove
from ops.cli import main as cli
from shared import seals
from shared.exports import BOM, Reader, csv_lines, header_line, manifest_line, release_lines

KEY = "a key that tests sign exports with and nobody else"
OTHER_KEY = "another key that nothing was ever signed with"

WHY = 'twice, "to be sure":\r\nsee the log\nmanifest,{}'


def release(number: int, sku: str = "=apfel-ä", why: str = WHY) -> dict[str, Any]:
    operation = {"kind": "replay", "operation_id": "op-1", "actor": "ann", "why": why}
    return {
        "id": number,
        "order_id": f"order-{number}",
        "reservation_id": f"reservation-{number}",
        "sku": sku,
        "quantity": number % 9 + 1,
        "reason": "cancelled",
        "requested_by": "ann",
        "roles": ["customer", "admin"],
        "trace_id": "0" * 32,
        "released_at": "2026-01-14T10:30:00.123Z",
        "operations": [operation] if number % 3 == 0 else [],
    }


def manifest(body: bytes, rows: int, key: str = KEY, **changed: Any) -> dict[str, Any]:
    told = {
        "version": 1,
        "export_id": "export-1",
        "exported_by": "ann",
        "started_at": "2026-01-14T10:30:00.123Z",
        "finished_at": "2026-01-14T10:30:01.123Z",
        "filters": {"sku": "apple"},
        "rows": rows,
        "sha256": hashlib.sha256(body).hexdigest(),
        "sealed_to": 7,
        "seal": "f" * 64,
        "key_id": seals.key_id(key),
        **changed,
    }
    return told | {"mac": seals.manifest_mac(key, told)}


@pytest.fixture
def body() -> bytes:
    return header_line() + release_lines(release(number) for number in range(10))


@pytest.fixture
def export(tmp_path: Path, body: bytes) -> Path:
    """An export of ten rows, as it was downloaded."""
    file = tmp_path / "releases.csv"
    file.write_bytes(body + manifest_line(manifest(body, 10)))
    return file


def proved(file: Path, *keys: str) -> Proof:
    return prove(file, keys or (OTHER_KEY, KEY))


def test_an_export_as_it_was_written_is_intact(export: Path, body: bytes) -> None:
    proof = proved(export)
    assert (proof.wrong, proof.rows, proof.sha256) == ("", 10, hashlib.sha256(body).hexdigest())
    assert proof.manifest == manifest(body, 10)


def test_an_export_of_nothing_is_intact(tmp_path: Path) -> None:
    file = tmp_path / "none.csv"
    file.write_bytes(header_line() + manifest_line(manifest(header_line(), 0)))
    assert (proved(file).wrong, proved(file).rows) == ("", 0)


def test_one_changed_byte_anywhere_is_found(export: Path) -> None:
    whole = export.read_bytes()
    for place in range(len(whole)):
        export.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert proved(export).wrong, f"byte {place}: {whole[place : place + 1]!r}"


def test_one_byte_that_is_missing_or_added_is_found(export: Path) -> None:
    whole = export.read_bytes()
    for place in range(0, len(whole) + 1, 5):
        for changed in (whole[:place] + whole[place + 1 :], whole[:place] + b" " + whole[place:]):
            if changed != whole:
                export.write_bytes(changed)
                assert proved(export).wrong, f"byte {place}"


def test_a_changed_cell_is_told_as_that(export: Path) -> None:
    export.write_bytes(export.read_bytes().replace(b"order-4", b"order-5"))
    assert proved(export).wrong == "it has its 10 rows, and some of their bytes were altered"


def resaved(content: bytes, separator: str = ",", line_end: str = "\r\n") -> bytes:
    """A file as another program writes its cells."""
    text = io.StringIO()
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    csv.writer(text, delimiter=separator, lineterminator=line_end).writerows(rows)
    return text.getvalue().encode()


SAME = "its cells are those that were exported"
LF = "its line ends were changed from CRLF to LF"
BOM_ADDED = "a byte order mark (BOM) was added to its beginning"
BOM_REMOVED = "a byte order mark (BOM) was removed from its beginning"
SEMICOLONS = "its separators were changed from comma to semicolon"
QUOTES = "its quotes, line ends or empty lines were changed"


@pytest.mark.parametrize(
    ("reader", "change", "says"),
    [
        (Reader.PROGRAMS, lambda file: file.replace(b"\r\n", b"\n"), f"{LF}; {SAME}"),
        (Reader.SPREADSHEETS, lambda file: file.replace(b"\r\n", b"\n"), f"{LF}; {SAME}"),
        (Reader.PROGRAMS, lambda file: BOM + file, f"{BOM_ADDED}; {SAME}"),
        (Reader.SPREADSHEETS, lambda file: file.removeprefix(BOM), f"{BOM_REMOVED}; {SAME}"),
        (Reader.PROGRAMS, lambda file: file[:-2], f"its last line end was removed; {SAME}"),
        (Reader.PROGRAMS, lambda file: file + b"\r\n", f"{QUOTES}; {SAME}"),
        (Reader.PROGRAMS, lambda file: resaved(file), f"{QUOTES}; {SAME}"),
        (Reader.PROGRAMS, lambda file: resaved(file, ";"), f"{SEMICOLONS}; {SAME}"),
        (Reader.SPREADSHEETS, lambda file: resaved(file, ";", "\n"), f"{SEMICOLONS}, {LF}, {BOM_REMOVED}; {SAME}"),
        (
            Reader.PROGRAMS,
            lambda file: resaved(file, "\t", "\n").replace(b"00042", b"42"),
            "another program, such as a spreadsheet, saved it again"
            f" (its separators were changed from comma to tab, {LF});"
            " it has its 10 rows, and some of their bytes were altered",
        ),
        (
            Reader.PROGRAMS,
            lambda file: b"".join(
                line for line in resaved(file, line_end="\n").splitlines(True) if b"order-4" not in line
            ),
            f"another program, such as a spreadsheet, saved it again ({LF});"
            " it has 9 rows and its manifest says 10: lines are missing",
        ),
        (Reader.PROGRAMS, lambda file: BOM + file.replace(b"ann", b"bob"), "its manifest was altered"),
        (
            Reader.PROGRAMS,
            lambda file: b"PK\x03\x04 and no line",
            "it is a workbook of a spreadsheet, not the CSV that was downloaded",
        ),
        (
            Reader.PROGRAMS,
            lambda file: file.decode().encode("utf-16"),
            "it is UTF-16 text that another program saved, not the UTF-8 that was downloaded",
        ),
    ],
    ids=[
        *("line ends", "line ends of a file for spreadsheets", "a BOM added", "a BOM removed", "no last line end"),
        *("an empty line", "quotes", "semicolons", "a spreadsheet's own way", "cells altered", "a line removed"),
        *("manifest altered", "a workbook", "UTF-16"),
    ],
)
def test_a_file_that_was_saved_in_another_way_is_told_in_words(
    tmp_path: Path, reader: Reader, change: Callable[[bytes], bytes], says: str
) -> None:
    file = tmp_path / "saved.csv"
    body = header_line(reader) + release_lines((release(number, sku="00042", why="x") for number in range(10)), reader)
    content = body + manifest_line(manifest(body, 10))
    file.write_bytes(content)
    assert proved(file).wrong == ""
    file.write_bytes(change(content))
    assert proved(file).wrong == says


def without(body: bytes, number: int) -> bytes:
    line = release_lines([release(number)])
    assert body.count(line) == 1
    return body.replace(line, b"")


@pytest.fixture
def old_export(tmp_path: Path) -> bytes:
    """An export as version 0.2 wrote it: with quotes only where they are needed."""
    lines = header_line() + release_lines(release(number, why="x") for number in range(10))
    rows = csv.reader(lines.decode().splitlines(True))
    body = csv_lines(list(rows), csv.QUOTE_MINIMAL)
    return body + manifest_line(manifest(body, 10), csv.QUOTE_MINIMAL)


def test_an_export_of_an_older_version_proves_itself(tmp_path: Path, old_export: bytes) -> None:
    file = tmp_path / "old.csv"
    file.write_bytes(old_export)
    assert proved(file).wrong == ""
    file.write_bytes(old_export.replace(b"\r\n", b"\n"))
    assert proved(file).wrong == f"{LF}; {SAME}"
    file.write_bytes(old_export.replace(b"ann", b"bob", 1))
    assert proved(file).wrong == "it has its 10 rows, and some of their bytes were altered"


@pytest.mark.parametrize("number", [0, 3, 4, 9])
def test_a_missing_line_is_told_with_the_counts(export: Path, number: int) -> None:
    export.write_bytes(without(export.read_bytes(), number))
    assert proved(export).wrong == "it has 9 rows and its manifest says 10: lines are missing"


def test_an_added_line_is_told_with_the_counts(export: Path) -> None:
    export.write_bytes(header_line() + release_lines([release(99)]) + export.read_bytes()[len(header_line()) :])
    assert proved(export).wrong == "it has 11 rows and its manifest says 10: lines were added"


@pytest.mark.parametrize(
    "end", [b"", b"manifest", b"manifest,", b"manifest,[]", b'manifest,"{}"', b"manifest," + b"[" * 60_000, b"\xff,{}"]
)
def test_a_file_without_a_manifest_is_known_to_be_incomplete(export: Path, body: bytes, end: bytes) -> None:
    export.write_bytes(body + end)
    proof = proved(export)
    assert proof.wrong.startswith("it does not end with a manifest")
    assert proof.manifest is None


def test_lines_behind_the_manifest_are_found(export: Path) -> None:
    export.write_bytes(export.read_bytes() + release_lines([release(99)]))
    assert proved(export).wrong.startswith("it does not end with a manifest")


def test_an_empty_file_is_none(tmp_path: Path) -> None:
    file = tmp_path / "empty.csv"
    file.touch()
    assert proved(file).wrong.startswith("it does not end with a manifest")


def test_a_manifest_of_another_key_is_told_as_that(export: Path) -> None:
    assert seals.key_id(KEY) in proved(export, OTHER_KEY).wrong
    assert "signed with the key" in proved(export, OTHER_KEY).wrong


@pytest.mark.parametrize(
    "name", ["exported_by", "rows", "sha256", "filters", "sealed_to", "seal", "finished_at", "mac"]
)
def test_an_altered_manifest_is_told_as_that(export: Path, body: bytes, name: str) -> None:
    altered = manifest(body, 10) | {name: 9 if name in ("rows", "sealed_to") else "x"}
    export.write_bytes(body + manifest_line(altered))
    assert proved(export).wrong == "its manifest was altered"


def test_a_manifest_made_to_fit_without_the_key_is_found(export: Path, body: bytes) -> None:
    forged = body.replace(b"order-4", b"order-5")
    export.write_bytes(forged + manifest_line(manifest(forged, 10, OTHER_KEY, key_id=seals.key_id(KEY))))
    assert proved(export, KEY).wrong == "its manifest was altered"


def test_a_seal_cannot_pass_for_a_manifest() -> None:
    told = {"rows": 1}
    assert seals.manifest_mac(KEY, told) != seals.manifest_mac(KEY, {**told, "rows": 2})
    assert seals.manifest_mac(KEY, {**told, "mac": "x"}) == seals.manifest_mac(KEY, told)


def test_a_large_file_is_read_in_constant_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "REPORT_EVERY", 64 * 1024)
    file, checksum, heard = tmp_path / "large.csv", hashlib.sha256(), []
    with file.open("wb") as opened:
        for number in range(-1, 20_000):
            piece = release_lines([release(number)]) if number >= 0 else header_line()
            opened.write(piece)
            checksum.update(piece)
        opened.write(manifest_line(manifest(b"", 20_000, sha256=checksum.hexdigest())))
    tracemalloc.start()
    try:
        proof = prove(file, [KEY], lambda read, of: heard.append((read, of)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (proof.wrong, proof.rows) == ("", 20_000)
    assert peak < file.stat().st_size / 4
    assert len(heard) > 10
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1]


def ecom(*arguments: object) -> int | str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", *map(str, arguments)])
    return ended.value.code or 0


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key, and no database."""
    monkeypatch.setenv("AUDIT_KEY", f"{OTHER_KEY},{KEY}")
    for service in ("INVENTORY", "OPS"):
        monkeypatch.delenv(f"{service}_DATABASE_URL", raising=False)


def test_people_are_told_who_exported_what_and_when(
    key: None, export: Path, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ecom("verify-export", export) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{export}: intact"
    assert {" ".join(line.split()) for line in said[1:]} == {
        "exported by ann",
        "started at 2026-01-14T10:30:00.123Z",
        "finished at 2026-01-14T10:30:01.123Z",
        "rows 10",
        "filters sku apple",
        f"sealed to 7, {'f' * 64}",
        f"sha256 {hashlib.sha256(body).hexdigest()}",
    }


def test_people_are_told_what_is_wrong(key: None, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export.write_bytes(without(export.read_bytes(), 4))
    assert ecom("verify-export", export) == 1
    said = capsys.readouterr().out
    assert said == f"{export}: it has 9 rows and its manifest says 10: lines are missing\n"


def test_a_file_cannot_say_that_it_is_intact(
    key: None, export: Path, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = manifest(body, 10, key_id=f"k\n{export}: intact\n\x1b[2J")
    export.write_bytes(body + manifest_line(forged))
    assert ecom("verify-export", export) == 1
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith(f"{export}: its manifest was signed with the key k ")
    assert "\x1b" not in said


def test_on_a_terminal_there_is_a_bar(
    key: None, export: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert ecom("verify-export", export) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{export}: intact\n")
    assert "bytes" in said.err


def test_programs_are_told_in_json(key: None, export: Path, body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert ecom("verify-export", export, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["intact"], told["wrong"], told["rows"], told["manifest"]) == (True, "", 10, manifest(body, 10))
    export.write_bytes(body)
    assert ecom("verify-export", export, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["intact"], told["manifest"], told["rows"]) == (False, None, 10)


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["verify", "x"], ["verify", "--actor", "\udcff"], ["history", "--max", "0"], ["verify-export"],
     ["verify-export", "/nowhere.csv"], ["verify-export", "/"]],
)  # fmt: skip
def test_misuse_is_2(key: None, arguments: list[str]) -> None:
    assert ecom(*arguments) == 2


def test_without_a_key_nothing_can_be_done(
    export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUDIT_KEY", " , ")
    for command in (["verify"], ["verify-export", export]):
        assert ecom(*command) == 3
        assert capsys.readouterr().err == "ecom: AUDIT_KEY is not set\n"


def test_in_production_the_key_alone_is_enough(
    export: Path, body: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith(("AUTH_", "AMQP_")) or name.endswith("_URL")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ECOM_ENV", "production")
    assert ecom("verify-export", export) == 3
    assert capsys.readouterr().err == "ecom: AUDIT_KEY is not set\n"
    fresh = secrets.token_hex(32)  # production refuses the keys that this file publishes
    export.write_bytes(body + manifest_line(manifest(body, 10, fresh)))
    monkeypatch.setenv("AUDIT_KEY", fresh)
    assert ecom("verify-export", export) == 0
    assert capsys.readouterr().out.startswith(f"{export}: intact\n")


def test_without_a_database_a_verification_cannot_be_done(
    key: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for service in ("INVENTORY", "OPS"):
        monkeypatch.setenv(f"{service}_DATABASE_URL", "postgresql://a:b@127.0.0.1:1/c")
    for command in ("verify", "history"):
        assert ecom(command) == 3
        assert capsys.readouterr().err.startswith("ecom: the database of ops cannot be used")
