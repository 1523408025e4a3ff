"""The release audit as CSV (RFC 4180, UTF-8): what an export writes and `ecom audit verify-export` reads.

A header, a line for each release, and a last line with the signed manifest, by which a file proves itself complete.

Every cell stands in quotes, so that a program which expects another separator does not begin a cell in the middle of a
text. A program that ignores the quotes as well finds no formula behind a separator or a line end: an apostrophe stands
before it.

A file is written for programs or for spreadsheets. In both, different texts are different cells. A text cell that
begins with an apostrophe holds the text behind it. In a file for spreadsheets, such a text that begins with a double
quote is a JSON string. docs/audit.md shows how a program reads such a cell.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal

COLUMNS = (
    "id",
    "order_id",
    "reservation_id",
    "sku",
    "quantity",
    "reason",
    "requested_by",
    "roles",
    "trace_id",
    "released_at",
    "operations",
)

# Columns whose text comes from people and other systems. No spreadsheet changes what stands in the others.
TEXTS = frozenset({"sku", "reason", "requested_by", "roles", "trace_id", "operations"})

# The first cell of the last line; the second is the manifest. No release has such an id.
MANIFEST = "manifest"

# By this byte order mark Excel knows that a file is UTF-8.
BOM = "\ufeff".encode()

# A spreadsheet takes a cell that begins so for a formula, and runs it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\0")
# Some know the wide characters of East Asia as well, and read #N/A as an error.
_FORMULA_OR_ERROR = (*_FORMULA, "＝", "＋", "－", "＠", "#")
_APOSTROPHE = "'"
# What would be a formula if a cell began behind this separator or line end, with the apostrophes that the text has.
_INNER_FORMULA = re.compile(r"(?<=[,;\t\r\n])(?='*[=+\-@\0＝＋－＠])")

_WORD = re.compile(r"[^\W\d_]+")

# The first letters of months, and words that stand beside a number as a currency or a half of the day, in the languages
# that spreadsheets are used in. A word too many costs an apostrophe; with a missing one a text would become a date.
_MONTHS = frozenset(
    re.findall(
        r"\w+",
        """
        abr ago agu apr ara aug avr bre cer cze dec des dez dic dub eki elo ene eyl feb fev gen giu gru haz hei
        hel huh ian iul iun jan jou jui jul jun kas kes kve kwi led lip lis lok lug lut maa mag mai maj mar may
        mei mrt mrz nis nov oca oct okt ott out paz pro rij sep set sie srp sty sub syy tam tem tou uno wrz zar
        """,
    )
)
_UNITS = frozenset(
    re.findall(r"\w+", "am pm chf czk dkk eur ft gbp huf kc kn kr lei lv nok pln rm ron rp rs sek tl usd zl")
)
_TRUTHS = frozenset(
    re.findall(
        r"\w+",
        """
        true false wahr falsch vrai faux verdadero falso vero verdadeiro waar onwaar sant sann falskt sand falsk
        tosi epätosi prawda fałsz pravda nepravda igaz hamis истина ложь doğru yanliş yanlış adevărat fals
        """,
    )
)


# csv.QUOTE_ALL or csv.QUOTE_MINIMAL.
Quoting = Literal[0, 1]


class Reader(StrEnum):
    """Who reads a file. PROGRAMS get texts as they are; SPREADSHEETS get the byte order mark and keep texts as text."""

    PROGRAMS = "programs"
    SPREADSHEETS = "spreadsheets"


def header_line(reader: Reader = Reader.PROGRAMS) -> bytes:
    """The names of the columns, behind the byte order mark in a file for spreadsheets."""
    return (BOM if reader is Reader.SPREADSHEETS else b"") + csv_lines([COLUMNS])


def release_lines(releases: Iterable[Mapping[str, Any]], reader: Reader = Reader.PROGRAMS) -> bytes:
    """A line for each release, which has its `operations`."""
    return csv_lines(_cells(release, _WRITERS[reader]) for release in releases)


def manifest_line(manifest: Mapping[str, Any], quoting: Quoting = csv.QUOTE_ALL) -> bytes:
    """The last line."""
    told = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return csv_lines([(MANIFEST, told, *("" for _ in COLUMNS[2:]))], quoting)


def csv_lines(rows: Iterable[Sequence[str]], quoting: Quoting = csv.QUOTE_ALL) -> bytes:
    """Rows as an export writes them: commas, every cell in quotes, CRLF. Up to version 0.2 quotes were minimal."""
    text = io.StringIO()
    csv.writer(text, quoting=quoting).writerows(rows)
    return text.getvalue().encode()


def for_programs(text: str) -> str:
    """The cell of a text for programs: no spreadsheet takes it for a formula."""
    return _within(_APOSTROPHE + text if text.startswith((*_FORMULA, _APOSTROPHE)) else text)


def for_spreadsheets(text: str) -> str:
    """The cell of a text for spreadsheets: each shows it as this text, not as a formula, number, date or truth value.

    Text with characters that cannot be seen is written as a JSON string.
    """
    if not _is_seen(text) or text.startswith('"'):
        return _within(json.dumps(text))
    is_kept = _stays_text(text) and not text.startswith((*_FORMULA_OR_ERROR, _APOSTROPHE))
    return _within(text if is_kept else _APOSTROPHE + text)


def _within(cell: str) -> str:
    """The cell with an apostrophe before each text in it that could become a formula."""
    return _INNER_FORMULA.sub(_APOSTROPHE, cell)


_WRITERS: dict[Reader, Callable[[str], str]] = {
    Reader.PROGRAMS: for_programs,
    Reader.SPREADSHEETS: for_spreadsheets,
}


def _is_seen(text: str) -> bool:
    """Whether different texts of this kind look different: no line ends, spaces around them or invisible characters."""
    return text.isprintable() and text == text.strip() and unicodedata.is_normalized("NFC", text)


def _stays_text(text: str) -> bool:
    """Whether no spreadsheet reads the text as a number, date, time or truth value, whatever its language."""
    folded = text.casefold()
    if not any(character.isnumeric() for character in text):
        return folded not in _TRUTHS
    return any(_is_no_part_of_a_number(word) for word in _WORD.findall(folded))


def _is_no_part_of_a_number(word: str) -> bool:
    # One letter may be an exponent or a half of the day. Words of other alphabets may be months or units.
    return len(word) > 1 and word.isascii() and word[:3] not in _MONTHS and word not in _UNITS


def _cells(release: Mapping[str, Any], write: Callable[[str], str]) -> Sequence[str]:
    told = {
        **release,
        "roles": " ".join(release["roles"]),
        "operations": "; ".join(_operation(one) for one in release["operations"]),
    }
    return [write(str(told[name])) if name in TEXTS else str(told[name]) for name in COLUMNS]


def _operation(one: Mapping[str, Any]) -> str:
    why = f": {one['why']}" if one["why"] else ""
    return f"{one['kind']} {one['operation_id']} by {one['actor']}{why}"
