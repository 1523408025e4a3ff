"""Passwords that are refused, addresses as they are stored, and the buckets of failures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth_service.accounts import domain
from auth_service.accounts.addresses import address_of, common_passwords
from auth_service.signing_in.domain import Kind, buckets_without_device, check_pauses, device_bucket, kind_of
from shared.errors import PasswordRefused, RateLimited, ValidationFailed

EMAIL = "ann.smith-jones@example.com"
COMMON = frozenset({"qwertyuiop123"})


@pytest.mark.parametrize(
    ("password", "accepted"),
    [
        ("elevenchars", False),
        ("twelve chars", True),
        ("x" * 1024, True),
        ("x" * 1025, False),
        ("ünïcödé wörds", True),
        ("aaaaaaaaaaaa", True),  # no rule about characters
        ("qwertyuiop123", False),
        ("QWERTYuiop123", False),
        (EMAIL, False),
        (EMAIL.upper(), False),
        ("ann.smith-jones", False),
        ("Ann.Smith-Jones", False),
        ("ann.smith-jones!", True),
    ],
)
def test_a_password_is_long_and_neither_common_nor_the_address(password: str, accepted: bool) -> None:
    if accepted:
        domain.check_password(password, EMAIL, COMMON)
    else:
        with pytest.raises(PasswordRefused) as caught:
            domain.check_password(password, EMAIL, COMMON, "new_password")
        assert list(caught.value.details) == ["new_password"]


def test_whoever_has_no_address_has_the_other_rules() -> None:
    domain.check_password("ann.smith-jones", None, COMMON)
    with pytest.raises(PasswordRefused):
        domain.check_password("qwertyuiop123", None, COMMON)


def test_every_common_password_passes_the_rule_of_length_and_is_written_as_it_is_compared() -> None:
    words = common_passwords()
    assert len(words) > 300
    assert {"qwertyuiop123", "123456789012"} <= words
    for word in words:
        assert word == word.casefold().strip()
        assert domain.MIN_PASSWORD <= len(word) <= domain.MAX_PASSWORD


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("Ann@Example.com", "ann@example.com"),
        ("ann+shop@example.co.uk", "ann+shop@example.co.uk"),
        ("ann@bücher.example.com", "ann@xn--bcher-kva.example.com"),
    ],
)
def test_an_address_is_stored_in_lower_case_and_ascii(typed: str, stored: str) -> None:
    assert address_of(typed) == stored
    assert address_of(stored) == stored


@pytest.mark.parametrize(
    "typed",
    [
        *("", "ann", "ann@", "@example.com", "ann@example", "ann@localhost", "ann@example.test", "a b@example.com"),
        *("Ann <ann@example.com>", "ann@[192.0.2.1]", '"ann"@example.com', "änn@example.com", "ann@example.com\n"),
        *(
            "ann@example.com,bob@example.com",
            "a" * 65 + "@example.com",
            "ann@" + "a." * 130 + "com",
            "ann\0@example.com",
        ),
    ],
)
def test_what_no_mail_server_could_take_is_no_address(typed: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        address_of(typed)
    assert list(caught.value.details) == ["email"]


@given(st.text(max_size=300))
def test_any_text_is_an_address_in_one_spelling_or_is_refused(typed: str) -> None:
    try:
        address = address_of(typed)
    except ValidationFailed:
        return
    assert address.isascii()
    assert address == address.lower() == address_of(address)


def test_buckets_differ_by_what_they_count_for_and_hold_nothing_of_it() -> None:
    account, network = buckets_without_device("ann@example.com", "192.0.2.1")
    device = device_bucket("u-ann", "d-1")
    assert [kind_of(bucket) for bucket in (account, network, device)] == [Kind.ACCOUNT, Kind.NETWORK, Kind.DEVICE]
    assert len({account, network, device, device_bucket("u-ann", "d-2"), device_bucket("u-bob", "d-1")}) == 5
    assert "ann" not in account + device
    assert "192" not in network


def test_the_longest_pause_is_told_and_a_pause_that_is_over_is_none() -> None:
    check_pauses([])
    check_pauses([0.0, -3.2])
    with pytest.raises(RateLimited) as caught:
        check_pauses([2.1, 59.2, -1.0])
    assert caught.value.details == {"retry_after": 60}
