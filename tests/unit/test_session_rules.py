"""What becomes of a refresh token, row by row, and how tokens are derived."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from auth_service import derived
from auth_service.service_keys import domain as keys
from auth_service.sessions.domain import Family, Refreshing, may_hear_revocations, refreshing
from shared.errors import ValidationFailed
from shared.events import Identity
from shared.roles import ROLES

NOW = datetime(2026, 1, 14, 10, 30, tzinfo=UTC)
GRACE = timedelta(seconds=60)
SECOND = timedelta(seconds=1)
FAMILY = Family(5, NOW - SECOND, NOW + timedelta(days=7), NOW + timedelta(days=30), ended=False, may_sign_in=True)

SESSION = UUID("01a1fcf8-0515-7912-9139-7154577473a5")
OLD, NEW = ("k1", "the-first-secret-of-more-than-thirty-two"), ("k2", "another-secret-of-more-than-thirty-two")


@pytest.mark.parametrize(
    ("family", "generation", "becomes"),
    [
        (FAMILY, 5, Refreshing.ROTATE),
        (replace(FAMILY, rotated_at=NOW - timedelta(days=6)), 5, Refreshing.ROTATE),
        (FAMILY, 4, Refreshing.REPEAT),
        (replace(FAMILY, rotated_at=NOW - GRACE), 4, Refreshing.REPEAT),
        (replace(FAMILY, rotated_at=NOW + SECOND), 4, Refreshing.REPEAT),  # rotated while this one waited
        (replace(FAMILY, rotated_at=NOW - GRACE - SECOND), 4, Refreshing.REUSE),
        (FAMILY, 3, Refreshing.REUSE),
        (FAMILY, 0, Refreshing.REUSE),
        (FAMILY, 6, Refreshing.REFUSE),  # the database is older than the token
        (None, 5, Refreshing.REFUSE),
        *(
            (replace(FAMILY, **gone), generation, Refreshing.REFUSE)
            for gone in ({"ended": True}, {"may_sign_in": False}, {"expires_at": NOW}, {"ends_at": NOW})
            for generation in (5, 4, 3)
        ),
    ],
)
def test_each_row_of_the_table_of_refresh_tokens(family, generation, becomes):
    assert refreshing(family, generation, NOW, GRACE) is becomes


def test_a_session_is_over_at_the_earlier_of_its_two_ends():
    ends_first = replace(FAMILY, expires_at=NOW + timedelta(days=9), ends_at=NOW + SECOND)
    assert refreshing(ends_first, 5, NOW, GRACE) is Refreshing.ROTATE
    assert refreshing(ends_first, 5, NOW + SECOND, GRACE) is Refreshing.REFUSE


def test_a_refresh_token_says_its_session_generation_and_key():
    token = derived.refresh_token((NEW, OLD), "k1", SESSION, 7)
    assert token.startswith("ert_")
    assert derived.read_refresh_token((NEW, OLD), token) == derived.Refresh(SESSION, 7, "k1")
    assert derived.refresh_token((OLD,), "k1", SESSION, 7) == token, "it can be derived again"


def test_a_key_that_is_not_listed_any_more_verifies_nothing():
    token = derived.refresh_token((OLD,), "k1", SESSION, 7)
    assert derived.read_refresh_token((NEW,), token) is None


def test_nobody_makes_a_refresh_token_of_another_one():
    token = derived.refresh_token((OLD,), "k1", SESSION, 7)
    others = {token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :] for place in range(len(token))}
    assert {derived.read_refresh_token((OLD,), other) for other in others} == {None}
    for other in (token[:-1], token + "A", token + "=", token.removeprefix("ert_"), f" {token}", "", "ert_", "ert_é"):
        assert derived.read_refresh_token((OLD,), other) is None


def test_only_the_system_hears_what_is_revoked():
    assert may_hear_revocations(Identity("system:gateway", ("system",)))
    assert not any(may_hear_revocations(Identity("somebody", (role,))) for role in ROLES)


KEY_ID, RANDOM = "01a1fcf80515791291397154577473a5", "s" * 42 + "_"


def test_a_key_is_read_as_it_was_written():
    assert keys.read_key(keys.key_text(KEY_ID, RANDOM)) == keys.Shown(KEY_ID, RANDOM)


@pytest.mark.parametrize(
    "text",
    [
        *("", "ek_", f"ek_{KEY_ID}", f"ek_{KEY_ID}_", KEY_ID, "x" * 100_000, f"xk_{KEY_ID}_{RANDOM}"),
        *(f"ek_{KEY_ID}_{RANDOM}x", f"ek_{KEY_ID}_{RANDOM[:-1]}", f"ek_{KEY_ID}_{RANDOM}\n"),
        f"ek_{KEY_ID.upper()}_{RANDOM}",
    ],
)
def test_what_is_no_key_is_not_read(text):
    assert keys.read_key(text) is None


def test_roles_of_a_key_are_written_as_ours_or_as_others_do():
    assert keys.roles_of(["ROLE_SERVICE", "operator", "service"]) == ["service", "operator"]


@pytest.mark.parametrize("roles", [[], ["cook"], ["service", "ROLE_COOK"], ["SERVICE"], ["ROLE_"], ["system"]])
def test_a_key_has_roles_that_there_are(roles):
    with pytest.raises(ValidationFailed):
        keys.roles_of(roles)


@pytest.mark.parametrize("name", ["till", "a", "till-2", "a" * 63])
def test_a_name_of_a_service(name):
    keys.check_name(name)


@pytest.mark.parametrize("name", ["", "Till", "2till", "-till", "till:2", "till_2", "a" * 64, "till\n", "tïll"])
def test_what_is_no_name_of_a_service(name):
    with pytest.raises(ValidationFailed):
        keys.check_name(name)


def test_a_key_lives_at_most_a_year():
    for good in (SECOND, timedelta(days=366)):
        keys.check_expiry(NOW + good, NOW)
    for bad in (timedelta(0), -SECOND, timedelta(days=366, seconds=1)):
        with pytest.raises(ValidationFailed):
            keys.check_expiry(NOW + bad, NOW)
