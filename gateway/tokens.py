"""Tokens: issue and introspect them."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from gateway.api.enumerations import ROLE
from gateway.api.fields import (
    OTHER_ID,
    AnswerSchema,
    OneOfApart,
    RequestSchema,
    Text,
    Word,
    field_metadata,
    integer_field,
    text_field,
)
from gateway.api.http import Call, api, sign_in
from shared.auth import ADMIN, MAX_NAME_LENGTH, SERVICE
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import Forbidden, Unauthenticated

MAX_PASSWORD = 1024
MAX_TOKEN = 8192


class PasswordLogin(RequestSchema):
    """A user's name and password."""

    username = Text("customer", at_most=MAX_NAME_LENGTH, required=True)
    password = Text("demo-customer", at_most=MAX_PASSWORD, required=True, load_only=True)


class MockLogin(RequestSchema):
    """Mock mode, in development only: a token for any user and roles."""

    user_id = Text("alice", "the user of the token", at_most=MAX_NAME_LENGTH, required=True)
    roles = fields.List(
        Word(ROLE, validate=validate.OneOf(ROLE.words), metadata=field_metadata("customer")),
        validate=validate.Length(1, len(ROLE.words)),
        required=True,
    )


class TokenRequest(OneOfApart):
    """A name and its password or, in mock mode, any user and roles."""

    shapes = (PasswordLogin, MockLogin)


class IntrospectionRequest(RequestSchema):
    """A token to introspect."""

    token = Text("eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl", at_most=MAX_TOKEN, required=True)


class Token(AnswerSchema):
    """A bearer token."""

    access_token = text_field("eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl")
    token_type = text_field("Bearer", validate=validate.Equal("Bearer"))
    expires_in = integer_field(900, "in seconds")


class Introspection(AnswerSchema):
    """The answer of RFC 7662. A token that is not valid has `active: false` and nothing else."""

    active = fields.Boolean(required=True, metadata=field_metadata(True))
    token_type = fields.String(metadata=field_metadata("Bearer"))
    sub = fields.String(metadata=field_metadata("alice", "the user's name"))
    username = fields.String(metadata=field_metadata("alice"))
    roles = fields.List(fields.String(metadata=field_metadata("customer")))
    scope = fields.String(metadata=field_metadata("customer", "the roles, separated by spaces"))
    iss = fields.String(metadata=field_metadata("ecom"))
    aud = fields.String(metadata=field_metadata("ecom-api"))
    iat = fields.Integer(metadata=field_metadata(1768386600))
    exp = fields.Integer(metadata=field_metadata(1768387500))
    jti = fields.String(metadata=field_metadata(OTHER_ID))


class Tokens:
    """Routes under /api/auth."""

    auth = RpcProxy("auth_service")

    @sign_in(
        "POST",
        "/api/auth/token",
        roles=None,
        body=TokenRequest,
        answer=Token,
        fails=(Unauthenticated, Forbidden),
        summary="Sign in",
    )
    def token(self, call: Call) -> dict[str, Any]:
        """A bearer token for a name and its password or, in mock mode, for the given user and roles."""
        if "username" in call.body:
            return self.auth.issue_token(**call.body)
        return self.auth.issue_mock_token(**call.body)

    @api(
        "POST",
        "/api/auth/introspect",
        roles=(SERVICE, ADMIN),
        body=IntrospectionRequest,
        answer=Introspection,
        summary="Introspect a token",
    )
    def introspect(self, call: Call) -> dict[str, Any]:
        """The answer of RFC 7662. For a token that is not valid it is `{"active": false}`."""
        return self.auth.introspect(call.body["token"])
