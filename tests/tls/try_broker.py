"""Connects to the broker as the services do, once for each URI in a JSON list on standard input.

Prints a JSON list of what came of it: an empty text, or the error in the words of the log.
"""

import shared.edge.patched  # noqa: F401  (first: it patches what the next lines import)

# isort: split
import json
import sys

from shared.edge.broker import BROKER_ERRORS, BrokerConnection, why


def attempt(uri: str) -> str:
    """What comes of one attempt."""
    try:
        BrokerConnection(uri, 5).close()
    except BROKER_ERRORS as error:
        return why(error)
    return ""


print(json.dumps([attempt(uri) for uri in json.load(sys.stdin)]))
