"""The one validation of replay requests, and of the filters of lists. ValidationFailed names each bad field.

Callers do not validate replay requests: neither the gateway, nor `nameko shell`, nor another service.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from ops.domain import Filter, Pace, parse_ramp, parse_rate, require_choice
from shared.errors import ValidationFailed
from shared.ids import TRACE_ID_TEXT, UUID_TEXT
from shared.replays import DEFAULT_RATE, MAX_IDS, MAX_MESSAGES, MAX_WORDS, RAMP, RATE
from shared.schema import MAX_TEXT

Read = Callable[[Any], Any]


@dataclass(frozen=True)
class ReplayRequest:
    """A replay as it is asked for; `most` is None for all that the filter chooses."""

    chosen: Filter
    most: int | None
    pace: Pace
    force: bool = False
    stop_on_redeath: bool = False
    why: str = ""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT:
        raise ValidationFailed(f"must be text of 1 to {MAX_TEXT} characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValidationFailed("must be text without NUL and lone surrogates")
    return value


def _matching(pattern: re.Pattern[str], meaning: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValidationFailed(f"must be {meaning}")
        return value

    return read


_uuid_text = _matching(UUID_TEXT, "a UUID with hyphens")
_trace_id_text = _matching(TRACE_ID_TEXT, "32 hex digits or a UUID")
_rate_text = _matching(RATE, "a rate such as 10/s, 30/m, 100/h, or max")
_ramp_text = _matching(RAMP, "up to 20 sizes from 1 to 999999, such as 1,2,5,20")


def _id(value: Any) -> UUID:
    return UUID(_uuid_text(value))


def _trace_id(value: Any) -> str:
    return UUID(_trace_id_text(value)).hex


def _moment(value: Any) -> datetime:
    """A time with its zone, in UTC; in milliseconds, as the system writes times."""
    try:
        given = datetime.fromisoformat(value) if isinstance(value, str) else None
        if given is not None and given.tzinfo is not None:
            moment = given.astimezone(UTC)
            return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    except (ValueError, OverflowError):
        pass
    raise ValidationFailed("must be a time with its zone")


def _count(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_MESSAGES:
        raise ValidationFailed(f"must be an integer from 1 to {MAX_MESSAGES}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValidationFailed("must be true or false")
    return value


def _list_of(read: Read, at_most: int) -> Read:
    def read_each(value: Any) -> frozenset[Any]:
        if not isinstance(value, list) or not 1 <= len(value) <= at_most:
            raise ValidationFailed(f"must be a list of 1 to {at_most} items")
        found, problems = _read_each((str(index), read, item) for index, item in enumerate(value))
        if problems:
            raise ValidationFailed(details=problems)
        return frozenset(found.values())

    return read_each


FILTER: dict[str, Read] = {
    "ids": _list_of(_id, MAX_IDS),
    "reasons": _list_of(_text, MAX_WORDS),
    "error": _text,
    "types": _list_of(_text, MAX_WORDS),
    "order_id": _id,
    "trace_id": _trace_id,
    "since": _moment,
    "until": _moment,
}
REPLAY: dict[str, Read] = FILTER | {
    "max": _count,
    "all": _flag,
    "rate": lambda value: parse_rate(_rate_text(value)),
    "ramp": lambda value: parse_ramp(_ramp_text(value)),
    "force": _flag,
    "stop_on_redeath": _flag,
    "why": _text,
}
# The filters of a list of recorded dead messages.
LISTED: dict[str, Read] = {"reason": _text, "event_type": _text, "order_id": _id, "trace_id": _trace_id}


def _unknown(value: Any) -> Any:
    raise ValidationFailed("is not known")


def _read_each(items: Iterable[tuple[str, Read, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read each (name, reader, value): the values by name, and the problems by name."""
    found: dict[str, Any] = {}
    problems: dict[str, Any] = {}
    for name, read, value in items:
        try:
            found[name] = read(value)
        except ValidationFailed as error:
            # The problems of a list are named by index, those of a single value are texts.
            problems[name] = error.details or [str(error)]
    return found, problems


def _read(given: Mapping[str, Any], readers: Mapping[str, Read]) -> dict[str, Any]:
    """Read every value by the reader of its name. Raises ValidationFailed, with details by name."""
    found, problems = _read_each((name, readers.get(name, _unknown), value) for name, value in given.items())
    if problems:
        raise ValidationFailed(details=problems)
    return found


def read_filters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the filters of a list of recorded dead messages. Raises ValidationFailed."""
    return _read(given, LISTED)


def read_replay(given: Mapping[str, Any]) -> ReplayRequest:
    """Read a replay request. Raises ValidationFailed, also when the request does not say which messages it means."""
    found = _read({"rate": DEFAULT_RATE, **given}, REPLAY)
    most, everything = found.get("max"), found.get("all", False)
    try:
        require_choice(found.get("ids"), most, everything, ("ids", "max", "all"))
    except ValidationFailed as error:
        raise ValidationFailed(details={"body": [str(error)]}) from None
    if "since" in found and "until" in found and found["until"] < found["since"]:
        raise ValidationFailed(details={"until": ["Must not be before since."]})
    return ReplayRequest(
        Filter(**{name: value for name, value in found.items() if name in FILTER}),
        most,
        Pace(found["rate"], found.get("ramp", ())),
        found.get("force", False),
        found.get("stop_on_redeath", False),
        found.get("why", ""),
    )
