"""The knowledge that schemathesis needs beside the document: which refusals of well-formed requests are right.

It loads this module itself (SCHEMATHESIS_HOOKS).
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from typing import Any

import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData

# Texts of refusals that no schema can predict.
RIGHT = (
    '"invalid_cursor"',  # only a received next_cursor is valid
    '"idempotency_key_reused"',
    "Must not be before from.",
    "Must not be before updated_from.",
    "Does not go with a list that is sorted by created_at.",
    "Does not go with a list that is sorted by updated_at.",
    "Must not be before since.",
    "Must not be given together with cursor.",
    "A price cannot change the past.",
    '"unknown_sku"',
    '"no_price"',
    "There is no category",
    "so it stays. Set on_sale to false.",
    "An item that was published is no draft any more.",
    "Each sku stands here once.",
    "There is no stock of it.",
    "There is no active supplier of that id.",
    "Goes together with ",  # currency, reorder_at
    "Must be more than reorder_at.",
    "To reorder needs a supplier.",
    "A sku has two lines",
    "There is no provider of that name.",
    "Is not one of those that are listed.",  # a redirect_uri
    "This sign-in was not begun here",
    '"token_invalid"',
    "cannot be on hand.",
    "Sales and returns are listed of one sku.",
    '"token_invalid"',  # only a token from a mail is valid
    '"password_refused"',  # no schema knows which passwords many have
    "The e-mail address is not valid.",
    "The body must hold name or locale.",
    '"invalid_grant"',
    '"unsupported_grant_type"',
    '"invalid_request"',  # each grant has fields of its own
    "at most a year from now.",
    "of the order is too large.",  # a line or the total, which no schema multiplies
)

# Set to send every case of the coverage phase: 1,600, most of which differ from another in one word.
ALL_CASES = "FUZZ_ALL_CASES"
# Otherwise each operation gets the first case of each kind, and one in this many of the others.
ONE_IN = 6

_made: Counter[tuple[str, Any, Any]] = Counter()

# The id in the examples of the document. Nothing real has it.
NOBODYS_ID = "01a1fcf8-0515-7912-9139-7154577473a5"


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Whether a case is sent. Every run sends the same cases."""
    phase = case.meta.phase
    if phase.name != "coverage" or os.environ.get(ALL_CASES):
        return True
    kind = (case.operation.label, phase.data.parameter_location, phase.data.scenario)
    _made[kind] += 1
    return _made[kind] % ONE_IN == 1


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Avoid requests that are long by design, or that others would suffer from.

    A stream of a real order lasts ten minutes, a wait 25 s.
    """
    path, query = case.operation.path, case.query
    if path.endswith("/events") and is_uuid(case.path_parameters.get("order_id")):
        case.path_parameters["order_id"] = NOBODYS_ID
    # Nobody is shut out whom another test needs: people who are read are found by other operations.
    if path.startswith("/api/users/{user_id}") and case.method.upper() != "GET":
        case.path_parameters["user_id"] = NOBODYS_ID
    if path.endswith("/{order_id}") and query and str(query.get("timeout", "20")) in LONG_WAITS and "wait" in query:
        query["timeout"] = 1


LONG_WAITS = {str(seconds) for seconds in range(2, 26)}


def is_uuid(value: Any) -> bool:
    """Whether this is a valid order id."""
    try:
        return str(uuid.UUID(str(value))) == str(value).lower()
    except ValueError:
        return False


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Whether a failure counts."""
    if not isinstance(failure, RejectedPositiveData):
        return True
    return not any(words in response.text for words in RIGHT) and not has_whole_float(case.body)


def has_whole_float(value: Any) -> bool:
    """JSON Schema counts 1.0 as an integer; the API does not, because money is never a float."""
    if isinstance(value, dict):
        return any(has_whole_float(inner) for inner in value.values())
    if isinstance(value, list):
        return any(has_whole_float(inner) for inner in value)
    return isinstance(value, float) and value.is_integer()
