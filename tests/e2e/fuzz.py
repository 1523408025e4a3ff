"""What schemathesis is to know beside the document: which refusals of well-formed requests are right.

It loads this module itself (SCHEMATHESIS_HOOKS).
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from typing import Any

import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData

# Words of refusals that no schema can foretell.
RIGHT = (
    '"invalid_cursor"',  # only what was given as next_cursor is one
    '"idempotency_key_reused"',
    "There is no such status.",  # the order service alone knows the states
    "Must not be before from.",
    "Must not be before since.",
    "Must not be given together with cursor.",
)

# Set where every case is sent that the coverage phase makes: 1,600, most of which differ from another in one word.
ALL_CASES = "FUZZ_ALL_CASES"
# Otherwise, at each operation, the first of each kind and one in so many of the others.
ONE_IN = 6

_made: Counter[tuple[str, Any, Any]] = Counter()

# In the document's examples. Nothing has this id.
NOBODYS_ID = "01a1fcf8-0515-7912-9139-7154577473a5"


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Whether a case is sent. The same cases are at each run."""
    told = case.meta.phase
    if told.name != "coverage" or os.environ.get(ALL_CASES):
        return True
    kind = (case.operation.label, told.data.parameter_location, told.data.scenario)
    _made[kind] += 1
    return _made[kind] % ONE_IN == 1


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Let no request take its time on purpose: a stream of a real order lasts ten minutes, and a wait 25 s."""
    path, query = case.operation.path, case.query
    if path.endswith("/events") and is_uuid(case.path_parameters.get("order_id")):
        case.path_parameters["order_id"] = NOBODYS_ID
    if path.endswith("/{order_id}") and query and str(query.get("timeout", "20")) in LONG_WAITS and "wait" in query:
        query["timeout"] = 1


LONG_WAITS = {str(seconds) for seconds in range(2, 26)}


def is_uuid(value: Any) -> bool:
    """Whether this would be taken for an order's id."""
    try:
        return str(uuid.UUID(str(value))) == str(value).lower()
    except ValueError:
        return False


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Whether a failure stays."""
    if not isinstance(failure, RejectedPositiveData):
        return True
    return not any(words in response.text for words in RIGHT) and not has_whole_float(case.body)


def has_whole_float(value: Any) -> bool:
    """JSON Schema counts 1.0 among the integers; we do not, since no float may pass for money."""
    if isinstance(value, dict):
        return any(has_whole_float(inner) for inner in value.values())
    if isinstance(value, list):
        return any(has_whole_float(inner) for inner in value)
    return isinstance(value, float) and value.is_integer()
