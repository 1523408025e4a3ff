"""What a message says is compared with what its receiver knows, before it takes effect.

Standard library only.
"""

from __future__ import annotations

from shared.errors import Contradiction

# The name of a fact, what the message says, and what is known: None if nothing is known yet.
Fact = tuple[str, object, object]


def compare(what: str, *facts: Fact) -> None:
    """Raise Contradiction, with every difference in words, if `what` says anything else than is known."""
    differences = [f"{name} {said}, known is {known}" for name, said, known in facts if known not in (None, said)]
    if differences:
        raise Contradiction(f"{what} says: {'; '.join(differences)}")
