"""The catalogue: what is decoded, what is refused, and that schema, decoder and documents say the same."""

import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.docs import contracts
from shared import events
from shared.envelope import Envelope, decode, envelope, json_schema
from shared.errors import DeadMessage, EcomError, InvalidSchema, Poison, UnknownType
from shared.events import CATALOGUE, Identity, OrderCreated, OrderedItem, OrderPayload
from shared.ids import aggregate_of
from tests.messages import body, places
from topology.services import publisher_of
from topology.table import QUEUES, UNHEARD, hears

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

# The events whose payload names the owner of the order; version 0.1 did not.
WITH_AN_OWNER = [type_ for type_ in CATALOGUE if publisher_of(type_) == "order"]


def read(message: dict[str, Any]) -> Envelope:
    return decode(json.dumps(message), message["type"])


@pytest.mark.parametrize("type_", CATALOGUE)
def test_a_good_message_of_each_type_is_read_and_written_as_it_came(type_: str) -> None:
    message = body(type_)

    assert json.loads(read(message).to_json()) == message
    jsonschema.validate(message, json_schema(type_))


def test_the_owner_of_an_order_is_in_every_event_of_the_order_service() -> None:
    assert {type_ for type_ in CATALOGUE if "customer_id" in body(type_)["payload"]} == set(WITH_AN_OWNER)


@pytest.mark.parametrize("type_", WITH_AN_OWNER)
def test_a_field_with_a_default_may_be_absent_on_arrival(type_: str) -> None:
    message = body(type_)
    del message["payload"]["customer_id"]

    payload = read(message).payload

    assert payload == replace(read(body(type_)).payload, customer_id=None)
    jsonschema.validate(message, json_schema(type_))


@pytest.mark.parametrize("type_", CATALOGUE)
def test_a_field_without_a_default_may_not_be_absent(type_: str) -> None:
    for name in json_schema(type_)["properties"]["payload"]["required"]:
        message = body(type_)
        del message["payload"][name]

        with pytest.raises(InvalidSchema, match=f"'{name}' is missing"):
            read(message)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(message, json_schema(type_))


ABOUT_ORDERS = [type_ for type_, payload in CATALOGUE.items() if issubclass(payload, OrderPayload)]


@pytest.mark.parametrize("type_", ABOUT_ORDERS)
def test_the_aggregate_of_an_event_about_an_order_is_the_order(type_: str) -> None:
    payload = read(body(type_)).payload

    assert payload.aggregate_id == payload.order_id


def test_an_aggregate_known_by_name_always_has_the_same_id() -> None:
    assert aggregate_of("sku", "lamp") == aggregate_of("sku", "lamp")
    assert len({aggregate_of("sku", "lamp"), aggregate_of("user", "lamp"), aggregate_of("sku", "desk")}) == 3


NO_MOMENTS = (
    "0001-01-01T00:00:00+01:00",  # the first moment of an unset .NET date, an hour before the year 1 of UTC
    "9999-12-31T23:59:59.999-00:01",
    "9999-12-31T23:00:00-14:00",
    "2026-02-30T10:30:00Z",
    "2026-01-14T24:00:01Z",
    "2026-01-14T10:30:60Z",
    "2026-01-14T10:30:00+24:00",
    "0000-01-01T00:00:00Z",
    "2026-01-14T10:30:00",
)
MOMENTS = (
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z",
    "0001-01-01T14:00:00+14:00",
    "1969-12-31T23:59:59Z",
)


@pytest.mark.parametrize("written", NO_MOMENTS)
def test_a_time_that_is_no_moment_of_utc_is_refused(written: str) -> None:
    with pytest.raises(InvalidSchema, match="occurred_at"):
        read(body("order.cancelled") | {"occurred_at": written})


@pytest.mark.parametrize("written", MOMENTS)
def test_each_moment_that_is_read_can_be_written(written: str) -> None:
    event = read(body("order.cancelled") | {"occurred_at": written})

    again = read(json.loads(event.to_json()))

    assert again.occurred_at.replace(microsecond=0) == event.occurred_at.replace(microsecond=0)


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize("field", ["type", "version", "message_id", "occurred_at", "identity", "payload", "trace_id"])
def test_no_value_is_nested_too_deeply_to_be_refused(field: str) -> None:
    message = json.dumps(body("order.cancelled") | {field: "DEEP"}).replace('"DEEP"', DEEP)

    with pytest.raises(DeadMessage):
        decode(message, "order.cancelled")


def spoilt() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=5),
        st.just([]),
        st.just({}),
    )


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_decoder_and_schema_agree_on_every_spoilt_message(data: st.DataObject) -> None:
    type_ = data.draw(st.sampled_from(sorted(CATALOGUE)))
    message = body(type_)
    place, name = data.draw(st.sampled_from(places(message)))
    if data.draw(st.booleans()):
        del place[name]
    else:
        place[name] = data.draw(spoilt())
    if not isinstance(message.get("payload"), dict) or message.get("type") != type_ or "message_id" not in message:
        return  # then it is another kind of message altogether
    validator = jsonschema.Draft202012Validator(
        json_schema(type_), format_checker=jsonschema.FormatChecker(["date-time"])
    )
    try:
        decode(json.dumps(message), type_)
        accepted = True
    except EcomError:
        accepted = False

    # The decoder also refuses what no schema can say: NUL in text, times without a zone that look like ones, 2.0 for 2.
    if accepted:
        assert validator.is_valid(message)
    elif "\0" not in str(message.values()):
        assert not validator.is_valid(message) or _is_beyond_schemas(place, name)


def _is_beyond_schemas(place: Any, name: Any) -> bool:
    value = place.get(name) if isinstance(place, dict) else None
    return (isinstance(value, str) and "\0" in value) or (isinstance(value, float) and value.is_integer())


def test_unknown_fields_are_ignored_wherever_they_stand() -> None:
    message = body("inventory.failed")
    message["colour"] = message["payload"]["colour"] = message["payload"]["shortages"][0]["colour"] = "red"

    assert read(message).payload.shortages[0].sku == "lamp"


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b'"x"', b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b'{"a":' * 50_000]
)
def test_a_body_that_is_no_json_object_is_poison(text: bytes) -> None:
    with pytest.raises(Poison):
        decode(text, "order.created")


@pytest.mark.parametrize(
    "change", [{"type": "order.eaten"}, {"version": 2}, {"version": "1"}, {"type": None}, {"type": ["order.created"]}]
)
def test_a_type_or_version_outside_the_catalogue_is_unknown(change: dict[str, Any]) -> None:
    with pytest.raises(UnknownType):
        decode(json.dumps(body("order.created") | change), "order.created")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("total", True, "payload.total"),
        ("total", 1.0, "payload.total"),
        ("total", 2**53, "payload.total"),
        ("currency", "eur", "payload.currency"),
        ("items", {}, "payload.items"),
        ("items", [{"sku": "a b", "quantity": 1, "unit_price": 1}], r"payload.items\[0\].sku"),
        ("items", [{"sku": "a", "quantity": 0, "unit_price": 1}], r"payload.items\[0\].quantity"),
        ("items", [{"sku": "a", "quantity": 1, "unit_price": 2**53}], r"payload.items\[0\].unit_price"),
        ("payment_method", "a\0b", "payload.payment_method"),
        ("payment_method", "\ud800", "payload.payment_method"),
        ("order_id", "1-2-3", "payload.order_id"),
    ],
)
def test_a_value_that_breaks_the_schema_is_named_by_its_path(path: str, value: Any, says: str) -> None:
    message = body("order.created")
    message["payload"][path] = value

    with pytest.raises(InvalidSchema, match=says):
        read(message)


def test_an_event_that_breaks_its_own_schema_is_not_published() -> None:
    payload = OrderCreated(uuid4(), "EUR", -1, (OrderedItem("a", 1, 1),), "mock_ok")

    with pytest.raises(InvalidSchema, match=r"payload\.total"):
        envelope("order_service", payload, TRACE, Identity("ann", ())).to_json()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_can_be_written_is_read_again_as_it_was(data: st.DataObject) -> None:
    type_ = data.draw(st.sampled_from(sorted(CATALOGUE)))
    event = read(body(type_))
    name = data.draw(st.sampled_from(sorted(event.payload.__dict__)))
    values = st.one_of(spoilt(), st.uuids(), st.just(()), st.text(), st.integers(-2, 2))
    event = replace(event, payload=replace(event.payload, **{name: data.draw(values)}))
    try:
        written = event.to_json()
    except InvalidSchema:
        return

    assert decode(written, type_).payload == event.payload


@pytest.mark.parametrize("type_", CATALOGUE)
def test_a_payload_that_was_read_is_equal_to_one_that_was_made(type_: str) -> None:
    payload = read(body(type_)).payload

    assert payload == type(payload)(**payload.__dict__)
    assert not hasattr(payload, "__post_init__"), "the decoder does not call it"


def test_a_bare_payload_is_completed_as_told_by_the_shell() -> None:
    first, second = (decode(json.dumps(body("order.created")["payload"]), "order.created") for _ in range(2))

    assert (first.type, first.source, first.identity.user_id) == ("order.created", "shell", "shell")
    assert first.message_id != second.message_id


def test_a_bare_payload_by_an_unknown_key_is_of_unknown_type() -> None:
    with pytest.raises(UnknownType, match=r"q\.x"):
        decode(b"{}", "q.x")


def test_the_next_event_of_a_saga_keeps_trace_and_identity_and_names_its_cause() -> None:
    cause = read(body("order.created"))
    effect = cause.caused("inventory_service", read(body("inventory.failed")).payload)

    assert (effect.trace_id, effect.identity, effect.causation_id) == (cause.trace_id, cause.identity, cause.message_id)
    assert effect.message_id != cause.message_id


def test_an_event_may_go_unheard_exactly_when_no_queue_hears_it() -> None:
    assert {type_ for type_ in CATALOGUE if not any(hears(queue, type_) for queue in QUEUES)} == UNHEARD


def test_results_have_two_words_and_commands_three() -> None:
    for type_ in CATALOGUE:
        assert len(type_.split(".")) == (3 if type_.endswith(".requested") else 2)


def test_the_documents_are_what_the_catalogue_says() -> None:
    written = {str(path.relative_to(contracts.FOLDER)): path.read_text() for path in contracts.FOLDER.rglob("*.json")}

    assert written == {name: contracts.text(document) for name, document in contracts.documents().items()}, (
        "run: python -m ops.docs.contracts"
    )


def test_every_event_in_the_asyncapi_document_is_told_and_heard_as_the_table_says() -> None:
    operations = contracts.asyncapi()["operations"]

    heard = {name for name, operation in operations.items() if operation["action"] == "receive"}
    assert heard == {f"hear-{queue.name}-{type_}" for queue in QUEUES for type_ in CATALOGUE if hears(queue, type_)}
    assert {f"tell-{type_}" for type_ in CATALOGUE} == set(operations) - heard


def test_each_payload_knows_its_type() -> None:
    assert {events.type_of(read(body(type_)).payload) for type_ in CATALOGUE} == set(CATALOGUE)
