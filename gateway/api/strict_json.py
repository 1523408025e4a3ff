"""JSON as RFC 8259 has it, and nothing else: UTF-8, no name twice, no NaN."""

from __future__ import annotations

import json
import re
from typing import Any

from shared.errors import BadJson

# No limit of the API has more digits, and Python refuses to read integers of 4,300 digits and more.
MAX_DIGITS = 19
# Of a name that is given twice, so much is shown.
SHOWN = 64

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Text first, so that the words inside it are not found.
_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)', re.DOTALL)


class _NoConstant(ValueError):
    """NaN or Infinity, which Python reads and JSON does not have."""


def read_json(body: bytes) -> Any:
    """Read JSON strictly. Raises BadJson, which says what is wrong and, where one place is wrong, its line and column.

    An empty body, a name that is given twice and too many brackets have no place.
    """
    if not body:
        raise BadJson("The body is empty; it must be JSON.")
    if body.startswith(_BYTE_ORDER_MARK):
        raise _bad("a byte order mark is not allowed", "", 0)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        before = body[: error.start].decode("utf-8")
        raise _bad("this is not UTF-8", before, len(before)) from error
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        raise _bad(error.msg, text, error.pos) from error
    except _NoConstant as error:
        place = next(match.start() for match in _CONSTANT.finditer(text) if match[1])
        raise _bad(str(error), text, place) from error
    except RecursionError as error:
        raise BadJson("The body is not valid JSON: it is nested too deeply.") from error


def _bad(problem: str, text: str, place: int) -> BadJson:
    line = text.count("\n", 0, place) + 1
    column = place - text.rfind("\n", 0, place)
    message = f"The body is not valid JSON: {problem}: line {line}, column {column}."
    return BadJson(message, {"line": line, "column": column})


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, value in pairs:
        if name in read:
            raise BadJson(f"The body is not valid JSON: an object has the name {json.dumps(name[:SHOWN])} twice.")
        read[name] = value
    return read


def _refuse_constant(constant: str) -> Any:
    raise _NoConstant(f"{constant} is not JSON")


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)  # WholeNumber refuses floats


_decode = json.JSONDecoder(
    object_pairs_hook=_unique_names, parse_constant=_refuse_constant, parse_int=_whole_number
).decode
