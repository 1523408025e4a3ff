"""What was counted: the lines of a CSV file, and what each of them would change. Standard library only."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import ValidationFailed

SKU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read_counts(file: Path) -> list[dict[str, Any]]:
    """The lines of a CSV file, sorted by sku. Raises ValidationFailed with each bad one by its number."""
    wrong: dict[str, str] = {}
    lines: list[dict[str, Any]] = []
    at: dict[str, int] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text, strict=True)
            named = rows.fieldnames or ()
            if not {"sku", "counted"} <= set(named) <= {"sku", "counted", "version"}:
                wanted = "the first line must be sku,counted or sku,counted,version"
                raise ValidationFailed(f"{file}: {wanted}, and is {','.join(named) or 'empty'}")
            for row in rows:
                problem = _problem(row)
                if not problem and row["sku"] in at:
                    problem = f"{row['sku']} is in line {at[row['sku']]} already"
                if problem:
                    wrong[f"line {rows.line_num}"] = problem
                    continue
                at[row["sku"]] = rows.line_num
                lines.append(
                    {"sku": row["sku"], "counted": int(row["counted"])}
                    | ({"version": int(row["version"])} if row.get("version") else {})
                )
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValidationFailed(f"{file} is not CSV in UTF-8: {error}") from error
    if wrong:
        many = "1 line is" if len(wrong) == 1 else f"{len(wrong)} lines are"
        raise ValidationFailed(f"{file}: {many} not well written; nothing was booked", wrong)
    if not lines:
        raise ValidationFailed(f"{file} counts no sku")
    return sorted(lines, key=lambda line: str(line["sku"]))


def _problem(row: Mapping[str | None, Any]) -> str:
    if None in row:
        return "has more values than columns"
    if not SKU.fullmatch(row["sku"] or ""):
        return f"{row['sku']!r} is no sku" if row["sku"] else "names no sku"
    for name in ("counted", "version"):
        value = row.get(name)
        if (value or name == "counted") and not re.fullmatch(r"[0-9]{1,12}", value or ""):
            return f"{name} must be a whole number, 0 or more, and is {value or 'missing'}"
    return ""


def differences(lines: Sequence[Mapping[str, Any]], levels: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each line of a count would change, and why it could not be booked."""
    shown = []
    for line in lines:
        level = levels.get(line["sku"])
        problem = ""
        if level is None:
            problem = "unknown sku"
        elif level["made"]:
            problem = "made by a recipe"
        elif line.get("version", level["version"]) != level["version"]:
            problem = "has moved since it was read"
        elif line["counted"] < level["reserved"]:
            problem = f"{level['reserved']} are reserved"
        on_hand = level["on_hand"] if level else None
        difference = None if on_hand is None else line["counted"] - on_hand
        shown.append(
            {
                "sku": line["sku"],
                "on_hand": on_hand,
                "counted": line["counted"],
                "difference": difference,
                "problem": problem,
            }
        )
    return shown
