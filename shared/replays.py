"""The limits of a replay request: the gateway documents them, ops_service enforces them."""

from __future__ import annotations

import re

MAX_MESSAGES = 10**9
MAX_IDS = 1000
MAX_WORDS = 50  # reasons or event types
# "max", or a number above 0 and its unit.
RATE = re.compile(r"max|(?!0+(?:\.0+)?/)[0-9]{1,6}(?:\.[0-9]{1,3})?/(?:s|m|min|h)")
RAMP = re.compile(r"[1-9][0-9]{0,5}(?:,[1-9][0-9]{0,5}){0,19}")
# A moderate default: a first replay should not overload the services. A caller can ask for more.
DEFAULT_RATE = "100/s"
