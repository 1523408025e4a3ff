"""What schemathesis is to know beside the document: which refusals of well-formed requests are right.

It loads this module itself (SCHEMATHESIS_HOOKS).
"""

from __future__ import annotations

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
)


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
