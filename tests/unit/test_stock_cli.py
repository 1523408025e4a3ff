"""`ecom stock`: what a file of counts must look like, and what it would change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ops.cli.counts import differences, read_counts
from shared.enumerations import CountReason, StockInReason, StockOutReason
from shared.errors import ValidationFailed
from tests.commands import ecom_here


def counts(directory: Path, text: str | bytes) -> Path:
    file = directory / "counts.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_a_file_of_counts_is_read_by_sku_whatever_program_wrote_it(tmp_path: Path) -> None:
    file = counts(tmp_path, "\ufeffcounted,sku,version\r\n7,lamp,3\r\n0,desk,\r\n")
    assert read_counts(file) == [{"sku": "desk", "counted": 0}, {"sku": "lamp", "counted": 7, "version": 3}]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("sku,counted\nlamp,-1\n", {"line 2": "counted must be a whole number, 0 or more, and is -1"}),
        ("sku,counted\nlamp,1.5\n", {"line 2": "counted must be a whole number, 0 or more, and is 1.5"}),
        ("sku,counted\nlamp\n", {"line 2": "counted must be a whole number, 0 or more, and is missing"}),
        ("sku,counted\nlamp,1,2\n", {"line 2": "has more values than columns"}),
        ("sku,counted\nred lamp,1\n,2\n", {"line 2": "'red lamp' is no sku", "line 3": "names no sku"}),
        ("sku,counted,version\nlamp,1,new\n", {"line 2": "version must be a whole number, 0 or more, and is new"}),
        ("sku,counted\nlamp,1\ndesk,1\nlamp,2\n", {"line 4": "lamp is in line 2 already"}),
        ('sku,counted\n"lamp,1\ndesk,1\n', {}),
        ("sku;counted\nlamp;1\n", {}),
        ("sku,quantity\nlamp,1\n", {}),
        ("sku,counted\n", {}),
        ("", {}),
        (b"sku,counted\nl\xe4mp,1\n", {}),
    ],
)
def test_a_bad_file_is_refused_whole_and_names_each_bad_line(
    tmp_path: Path, text: str | bytes, wrong: dict[str, str]
) -> None:
    with pytest.raises(ValidationFailed) as refused:
        read_counts(counts(tmp_path, text))
    assert refused.value.details == wrong


def level(on_hand: int | None, reserved: int | None = 0, made: bool = False) -> dict[str, Any]:
    return {"on_hand": on_hand, "reserved": reserved, "version": 3, "made": made}


def test_a_dry_run_shows_each_difference_and_what_could_not_be_booked() -> None:
    levels = {"desk": level(5), "lamp": level(9, 4), "sofa": level(2), "soup": level(None, None, made=True)}
    lines = [
        {"sku": "desk", "counted": 5},
        {"sku": "lamp", "counted": 3},
        {"sku": "lomp", "counted": 1},
        {"sku": "sofa", "counted": 4, "version": 2},
        {"sku": "soup", "counted": 1},
    ]
    assert [(row["sku"], row["difference"], row["problem"]) for row in differences(lines, levels)] == [
        ("desk", 0, ""),
        ("lamp", -6, "4 are reserved"),
        ("lomp", None, "unknown sku"),
        ("sofa", 2, "has moved since it was read"),
        ("soup", None, "made by a recipe"),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("in", "lamp", "--reason", "delivery"), "'lamp' is not SKU=QUANTITY"),
        (("in", "lamp=-1", "--reason", "delivery"), "'lamp=-1' is not SKU=QUANTITY"),
        (("in", "lamp=0", "--reason", "delivery"), "a whole number from 1"),
        (("in", "lamp=1", "lamp=2", "--reason", "delivery"), "lamp is given twice"),
        (("in", "--reason", "delivery"), "Missing argument"),
        (("in", "lamp=1", "--reason", "theft"), "'theft' is not one of 'delivery', 'found'"),
        (("out", "lamp=1"), "Missing option '--reason'"),
        (("in", *(f"sku-{n}=1" for n in range(101)), "--reason", "delivery"), "at most 100 skus"),
        (("count", "no-such-file.csv"), "does not exist"),
        (("levels", "red lamp"), "'red lamp' is no sku"),
        (("movements", "red lamp"), "'red lamp' is no sku"),
    ],
)
def test_what_is_mistyped_is_refused_before_anything_is_sent(words: tuple[str, ...], said: str) -> None:
    assert said in ecom_here("stock", *words, code=2).err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        *((("in", "lamp=1"), reason) for reason in StockInReason),
        *((("out", "lamp=1"), reason) for reason in StockOutReason),
        *((("count",), reason) for reason in CountReason),
    ],
)
def test_each_reason_is_given_by_the_word_of_the_api(tmp_path: Path, words: tuple[str, ...], reason: str) -> None:
    file = [counts(tmp_path, "sku,counted\nlamp,1\n")] if words == ("count",) else []
    ended = ecom_here("stock", *words, *file, "--reason", reason, "--url", "http://127.0.0.1:1", code=3)
    assert "no gateway answers at http://127.0.0.1:1" in ended.err


def test_many_bad_lines_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    file = counts(tmp_path, "sku,counted\n" + "lamp,-1\n" * 25)
    said = ecom_here("stock", "count", file, code=1).err.splitlines()
    assert said[0] == f"ecom: {file}: 25 lines are not well written; nothing was booked"
    assert said[1:2] + said[-2:] == [
        "  line 2: counted must be a whole number, 0 or more, and is -1",
        "  line 21: counted must be a whole number, 0 or more, and is -1",
        "  and 5 more",
    ]
