"""`ecom stock`: levels, in, out, and a count from a file, which a dry run shows first."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Ended, ecom
from tests.e2e.system import System


@pytest.fixture
def word() -> str:
    """The beginning of skus that no other test has."""
    return f"shelf-{uuid.uuid4().hex[:8]}"


def stock(system: System, *words: object, code: int | None = 0) -> Ended:
    return ecom("stock", *words, "--url", system.url("gateway"), code=code)


def on_hand(system: System, word: str) -> dict[str, int]:
    rows = system.databases.rows("inventory", "SELECT sku, on_hand FROM stock_items WHERE starts_with(sku, :w)", w=word)
    return {row["sku"].removeprefix(word): row["on_hand"] for row in rows}


def test_stock_goes_in_and_out_once_for_each_key(system: System, word: str) -> None:
    taken: list[Any] = [
        stock(system, "in", f"{word}a=12", f"{word}b=3", "--reason", "delivery", "--key", word, "--json").answer
        for _ in range(2)
    ]
    assert taken[0] == taken[1]
    out = stock(system, "out", f"{word}a=2", "--reason", "spoiled", "--note", "wet")
    assert "-2" in out.out
    assert on_hand(system, word) == {"a": 10, "b": 3}

    refused = stock(system, "out", f"{word}b=4", "--reason", "waste", code=1)
    assert "below_reserved" in refused.err
    assert on_hand(system, word) == {"a": 10, "b": 3}


def test_a_count_is_shown_by_a_dry_run_and_then_booked_in_parts(system: System, word: str, tmp_path: Path) -> None:
    skus = [f"{word}{n:03}" for n in range(120)]
    for some in (skus[:100], skus[100:]):
        stock(system, "in", *(f"{sku}=5" for sku in some), "--reason", "found")
    file = tmp_path / "counts.csv"
    file.write_text("sku,counted\n" + "".join(f"{sku},{5 if n % 40 else 7}\n" for n, sku in enumerate(skus)))

    shown = stock(system, "count", file, "--dry-run").out
    assert "120 lines, 3 of them differ; nothing was changed" in shown
    assert set(on_hand(system, word).values()) == {5}
    booked = stock(system, "count", file, "--json").answer["movements"]
    assert [(one["sku"], one["change"]) for one in booked] == [(skus[n], 2) for n in (0, 40, 80)]
    assert sum(on_hand(system, word).values()) == 120 * 5 + 6

    file.write_text(f"sku,counted\n{word}new,1\n")
    assert "unknown sku" in stock(system, "count", file, "--dry-run", code=1).out
    assert "unknown_sku" in stock(system, "count", file, code=1).err


def test_levels_show_what_is_low_first_then_what_is_sold_out(system: System, word: str) -> None:
    stock(system, "in", f"{word}full=50", f"{word}low=3", f"{word}none=1", "--reason", "found")
    stock(system, "out", f"{word}none=1", "--reason", "waste")
    system.databases.run("inventory", "INSERT INTO stock_rules (sku, low_at) VALUES (:sku, 5)", sku=f"{word}low")

    everything = stock(system, "levels", "--limit", 100_000, "--json").answer["items"]
    ours = [item["sku"].removeprefix(word) for item in everything if item["sku"].startswith(word)]
    assert ours == ["low", "none", "full"]
    low = stock(system, "levels", "--low").out
    assert f"{word}low" in low
    assert f"{word}none" not in low
    assert stock(system, "levels", "--limit", 1, "--json").answer["more"] is True


def test_named_skus_are_shown_alone_and_an_unknown_one_is_an_error(system: System, word: str) -> None:
    stock(system, "in", f"{word}b=7", f"{word}a=9", "--reason", "found")
    stock(system, "in", f"{word}c=1", "--reason", "found")
    system.databases.run("inventory", "INSERT INTO stock_rules (sku, low_at) VALUES (:sku, 8)", sku=f"{word}b")

    named = stock(system, "levels", f"{word}a", f"{word}b", "--json").answer
    assert ([item["sku"].removeprefix(word) for item in named["items"]], named["more"]) == (["b", "a"], False)
    (low,) = stock(system, "levels", f"{word}a", f"{word}b", "--low", "--json").answer["items"]
    assert low["sku"] == f"{word}b"
    refused = stock(system, "levels", f"{word}a", f"{word}x", code=1)
    assert (refused.out, refused.err) == ("", f"ecom: neither in stock nor made by a recipe: {word}x\n")


def test_movements_of_a_sku_are_shown_newest_first_with_the_balance(system: System, word: str) -> None:
    stock(system, "in", f"{word}=12", "--reason", "delivery")
    stock(system, "out", f"{word}=2", "--reason", "waste", "--note", "two were wet")

    shown = stock(system, "movements", word, "--json").answer
    assert [(one["change"], one["on_hand_after"], one["note"]) for one in shown["items"]] == [
        (-2, 10, "two were wet"),
        (12, 12, None),
    ]
    last = stock(system, "movements", word, "--limit", 1).out
    assert "two were wet" in last
    assert "delivery" not in last
    assert "the last 1 movements; --limit shows more" in last
    assert word in stock(system, "movements").out, "and among all that people moved"
    assert stock(system, "movements", f"{word}x").out == "nothing has moved\n"


def test_a_refusal_names_the_orders_that_hold_the_stock_and_each_bad_line(system: System, word: str) -> None:
    stock(system, "in", f"{word}=5", "--reason", "found")
    order_id = str(uuid.uuid4())
    held = {"order_id": order_id, "items": [{"sku": word, "quantity": 3}]}
    system.flow().send("POST", "/api/stocks/reserve", held, user="admin").raise_for_status()

    refused = stock(system, "out", f"{word}=3", "--reason", "theft", code=1).err
    assert f"\n  order {order_id} holds 3\n" in refused
    many = stock(system, "out", f"{word}x=1", f"{word}y=1", "--reason", "theft", code=1).err
    assert [f"There is no stock of {word}{end}." in many for end in "xy"] == [True, True]
