"""The one validation of replay requests and list filters. Each bad field is named in ValidationFailed.

Every caller depends on it: the gateway, `nameko shell` and other services.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from ops.domain import DEFAULT_RATE, Filter, Pace, parse_ramp, parse_rate, require_choice
from shared.errors import ValidationFailed

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
    if not isinstance(value, str) or "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValidationFailed("must be text without NUL and lone surrogates")
    return value


def _id(value: Any) -> UUID:
    try:
        return UUID(_text(value))
    except ValueError:
        raise ValidationFailed("must be a UUID") from None


def _moment(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(_text(value))
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValidationFailed("must be a time with its zone")


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValidationFailed("must be an integer from 1")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValidationFailed("must be true or false")
    return value


def _some(read: Read) -> Read:
    def read_each(value: Any) -> frozenset[Any]:
        if not isinstance(value, list) or not value:
            raise ValidationFailed("must be a list with something in it")
        return frozenset(read(item) for item in value)

    return read_each


FILTER: dict[str, Read] = {
    "ids": _some(_id),
    "reasons": _some(_text),
    "error": _text,
    "types": _some(_text),
    "order_id": _id,
    "trace_id": _text,
    "since": _moment,
    "until": _moment,
}
REPLAY: dict[str, Read] = FILTER | {
    "max": _count,
    "all": _flag,
    "rate": lambda value: parse_rate(_text(value)),
    "ramp": lambda value: parse_ramp(_text(value)),
    "force": _flag,
    "stop_on_redeath": _flag,
    "why": _text,
}
# Of what is written down of dead messages.
LISTED: dict[str, Read] = {"reason": _text, "event_type": _text, "order_id": _id, "trace_id": _text}


def _read(given: Mapping[str, Any], readers: Mapping[str, Read]) -> dict[str, Any]:
    """Every value as its reader reads it. Raises ValidationFailed, with details by name."""
    found, problems = {}, {}
    for name, value in given.items():
        try:
            if name not in readers:
                raise ValidationFailed("is not known")
            found[name] = readers[name](value)
        except ValidationFailed as error:
            problems[name] = [str(error)]
    if problems:
        raise ValidationFailed(details=problems)
    return found


def read_filters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Which of the messages that are written down are to be listed. Raises ValidationFailed."""
    return _read(given, LISTED)


def read_replay(given: Mapping[str, Any]) -> ReplayRequest:
    """Read a request for a replay. Raises ValidationFailed, also when it does not choose any messages."""
    found = _read({"rate": DEFAULT_RATE, **given}, REPLAY)
    most, everything = found.get("max"), found.get("all", False)
    require_choice(found.get("ids"), most, everything, ("ids", "max", "all"))
    return ReplayRequest(
        Filter(**{name: value for name, value in found.items() if name in FILTER}),
        most,
        Pace(found["rate"], found.get("ramp", ())),
        found.get("force", False),
        found.get("stop_on_redeath", False),
        found.get("why", ""),
    )
