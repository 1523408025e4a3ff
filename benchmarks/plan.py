"""What the load generator is asked to post, and what it tells of each post."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# Orders have two lines: a sku of the first half of these, and one of the other half.
SKUS = 1000
FIRST_PRICE, OTHER_PRICE = 100, 250  # in cents


@dataclass
class Plan:
    """What to post: until `seconds` have passed or `posts` are sent; `users` are header lines that say who posts.

    With `rate`, so many posts a second are due, whether or not earlier ones are answered.
    """

    urls: list[str]
    users: list[str]
    run: str  # a word of its own, for the keys
    connections: int
    seconds: float
    posts: int | None = None
    rate: float | None = None
    hot: bool = False  # the first line of every order has the same sku


class Post(NamedTuple):
    """One post: when it was due and answered, in seconds since 1970, and the answer."""

    due: float
    answered: float
    status: int  # 0 if its connection broke
    order_id: str | None
    retry_after: bool  # whether the answer says when to try again
