"""The verdict on a new version: figures of old and new pods in, good, bad or unknown with the reason out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ops.release.triggers import ENOUGH, IN_A_ROW, TRIGGERS, Figures, Trigger


class Word(StrEnum):
    """What to do with the new version: keep it, roll it back, or look again."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """A verdict, and why."""

    word: Word
    reason: str


@dataclass(frozen=True)
class Window:
    """The figures of both versions in one window of time."""

    old: Figures
    new: Figures


# What says that the new version is used at all.
TRAFFIC = ("requests", "calls", "events")


def judge(windows: Sequence[Window]) -> Verdict:
    """The verdict on windows one after another, the newest last. A trigger must be met in the last two."""
    last = windows[-IN_A_ROW:]
    met = [trigger for trigger in TRIGGERS if all(is_met(trigger, window) for window in last)]
    if met and len(last) == IN_A_ROW:
        return Verdict(Word.BAD, "; ".join(_said(trigger, last[-1]) for trigger in met))
    if len(last) < IN_A_ROW or any(is_met(trigger, last[-1]) for trigger in TRIGGERS):
        return Verdict(Word.UNKNOWN, f"a verdict needs {IN_A_ROW} windows in a row that agree")
    new, old = ({name: round(side[name]) for name in TRAFFIC} for side in (last[-1].new, last[-1].old))
    if all(min(new[name], old[name]) < ENOUGH for name in TRAFFIC):
        seen = ", ".join(f"{new[name]} and {old[name]} {name}" for name in TRAFFIC)
        return Verdict(Word.UNKNOWN, f"new and old had {seen}; {ENOUGH} of one kind are needed")
    return Verdict(Word.GOOD, "no trigger is met")


def is_met(trigger: Trigger, window: Window) -> bool:
    """Whether one window meets a trigger."""
    if trigger.enough and min(window.old[trigger.enough], window.new[trigger.enough]) < ENOUGH:
        return False
    return bool(trigger.worse(window.old, window.new) > trigger.above)


def _said(trigger: Trigger, window: Window) -> str:
    return f"{trigger.name} ({trigger.when}): {trigger.worse(window.old, window.new):.4g} is above {trigger.above:g}"
