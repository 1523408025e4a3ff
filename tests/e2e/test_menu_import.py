"""`ecom menu import`: a file of prices on the menu, all of it checked before anything is sent."""

import json
import uuid
from pathlib import Path
from typing import Any

from tests.commands import ecom
from tests.e2e.system import System


def test_a_file_is_listed_once_and_again_changes_nothing(system: System, tmp_path: Path) -> None:
    flow, word = system.flow(), f"import-{uuid.uuid4().hex[:8]}"
    offers = [
        {"sku": f"{word}-{n}", "currency": currency, "unit_price": 10 * n + place}
        for n in range(1, 151)
        for place, currency in enumerate(("EUR", "USD", "SEK"))
    ]
    file = tmp_path / "menu.json"

    def listed(*options: str) -> dict[str, Any]:
        file.write_text(json.dumps({"offers": offers}))
        return dict(ecom("menu", "import", file, "--url", system.url("gateway"), "--json", *options).answer)

    assert listed("--dry-run") == {"offers": 450, "created": 0, "changed": 0, "dry_run": True}
    assert flow.get(f"/api/menu/offers?skus={word}-1")["unknown"] == [f"{word}-1"]
    assert listed() == {"offers": 450, "created": 150, "changed": 0, "dry_run": False}
    assert listed() == {"offers": 450, "created": 0, "changed": 0, "dry_run": False}
    offers[0]["unit_price"] = 1
    assert listed()["changed"] == 1
    (offer,) = flow.get(f"/api/menu/offers?skus={word}-1")["offers"]
    assert {currency: tiers[0]["unit_price"] for currency, tiers in offer["prices"].items()} == {
        "EUR": 1,
        "SEK": 12,
        "USD": 11,
    }


def test_long_names_of_any_alphabet_are_listed(system: System, tmp_path: Path) -> None:
    word, name = f"import-{uuid.uuid4().hex[:8]}", "\u706f" * 120
    offers = [{"sku": f"{word}-{n}", "currency": "EUR", "unit_price": 1, "name": name} for n in range(200)]
    file = tmp_path / "menu.json"
    file.write_text(json.dumps(offers))

    assert ecom("menu", "import", file, "--url", system.url("gateway"), "--json").answer["created"] == 200
    (offer,) = system.flow().get(f"/api/menu/offers?skus={word}-199")["offers"]
    assert offer["name"] == name


def test_a_file_with_a_bad_offer_is_refused_whole_and_names_its_place(system: System, tmp_path: Path) -> None:
    word = f"import-{uuid.uuid4().hex[:8]}"
    good = {"sku": word, "currency": "EUR", "unit_price": 1}
    file = tmp_path / "menu.json"
    for content, said in (
        (json.dumps([good, {**good, "unit_price": 1.5}]), 'offer 2: {"unit_price"'),
        (json.dumps([good, {**good, "currency": "EURO"}]), 'offer 2: {"currency"'),
        ('{"offers": 7}', "holds no list of offers"),
        ("not JSON", "is not JSON"),
    ):
        file.write_text(content)
        ended = ecom("menu", "import", file, "--url", system.url("gateway"), code=1)
        assert said in ended.err
    assert system.flow().get(f"/api/menu/offers?skus={word}")["unknown"] == [word]


def test_a_gateway_that_does_not_answer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "menu.json"
    file.write_text(json.dumps([{"sku": "lamp", "currency": "EUR", "unit_price": 1}]))

    ended = ecom("menu", "import", file, "--url", "http://127.0.0.1:1", code=3)

    assert "no gateway answers at http://127.0.0.1:1" in ended.err
