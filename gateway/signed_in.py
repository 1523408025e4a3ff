"""What a client gets that has signed in, however it has shown who it is."""

from __future__ import annotations

from marshmallow import fields

from gateway.api.enumerations import ROLE
from gateway.api.fields import EXAMPLE_ID, AnswerSchema, Word, field_metadata, text_field
from gateway.tokens import Token


class SignedInUser(AnswerSchema):
    """Who has signed in."""

    id = text_field(EXAMPLE_ID, "the user's id, which never changes")
    email = text_field("alice@example.org", "their address, null for who has none", allow_none=True)
    name = text_field("Alice", "what they call themselves", allow_none=True)
    roles = fields.List(Word(ROLE, metadata=field_metadata("customer")), required=True)


class SignedIn(Token):
    """A bearer token, and what it is renewed by."""

    refresh_token = text_field("ert_AaH8-AUVeRKROXFUV0RzpQAAAAE", "good for one refresh, and 7 days")
    device_token = fields.String(
        metadata=field_metadata("AaH8-AUVeRKROXFUV0RzpQ", "for the next sign-in on this device; not after a refresh")
    )
    user = fields.Nested(SignedInUser, required=True)
