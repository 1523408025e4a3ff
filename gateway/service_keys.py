"""Keys by which programs of others sign in as services."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import fields

from gateway.api.enumerations import ROLE
from gateway.api.fields import (
    EXAMPLE_TIME,
    AnswerSchema,
    PageQuery,
    RequestSchema,
    Text,
    Timestamp,
    Word,
    cursor_field,
    datetime_field,
    field_metadata,
    list_field,
    text_field,
)
from gateway.api.http import Call, api
from gateway.origins import origin_of
from gateway.roles import roles_field
from shared.auth import ADMIN
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import NotFound, ValidationFailed

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
KEY_ID = re.compile(r"[0-9a-f]{32}")
EXAMPLE_KEY_ID = "01a1fcf80515791291397154577473a5"


class KeyRequest(RequestSchema):
    """What a key allows, and until when."""

    roles = roles_field(required=True)
    expires_at = Timestamp("when the key ends: at most a year from now", required=True)


class NewKey(AnswerSchema):
    """A key, which nobody can read again."""

    key_id = text_field(EXAMPLE_KEY_ID)
    key = text_field(f"ek_{EXAMPLE_KEY_ID}_bm90IGEga2V5IGJ1dCBhbiBleGFtcGxlIG9mIG9uZS4", "send it as X-API-Key")
    roles = fields.List(Word(ROLE, metadata=field_metadata("service")), required=True)
    expires_at = datetime_field()


class Key(AnswerSchema):
    """A key of a service, without its secret."""

    key_id = text_field(EXAMPLE_KEY_ID)
    roles = fields.List(Word(ROLE, metadata=field_metadata("service")), required=True)
    created_by = text_field("admin")
    created_at = datetime_field()
    expires_at = datetime_field()
    last_used_on = fields.Date(
        required=True, allow_none=True, metadata=field_metadata("2026-01-14", "the day, UTC; null if never")
    )
    revoked_at = fields.DateTime(required=True, allow_none=True, metadata=field_metadata(EXAMPLE_TIME))


class KeyPage(AnswerSchema):
    """A page of a service's keys, the newest first."""

    items = list_field(Key)
    next_cursor = cursor_field()


def name_field() -> Text:
    """The name of a service in a path."""
    return Text("till", "the name of the service", at_most=63, pattern=NAME)


def key_id_field() -> Text:
    """The id of a key in a path."""
    return Text(EXAMPLE_KEY_ID, "the id of the key", at_most=32, pattern=KEY_ID)


class ServiceKeys:
    """Routes under /api/services."""

    auth = RpcProxy("auth_service")

    @api(
        "POST",
        "/api/services/<name>/keys",
        in_path={"name": name_field()},
        roles=(ADMIN,),
        body=KeyRequest,
        answer=NewKey,
        status=201,
        summary="Make a key of a service",
    )
    def create_key(self, call: Call, name: str) -> dict[str, Any]:
        """The key, once: only a hash of it is kept. The first key of a name makes the service.

        The service sends it as X-API-Key, with its name as X-Service-Name, or changes it into a token at
        `/api/auth/token`.
        """
        if not NAME.fullmatch(name):
            raise ValidationFailed(details={"name": [f"Must match {NAME.pattern}."]})
        return self.auth.create_key(name, call.body["roles"], call.body["expires_at"], origin_of(call))

    @api(
        "GET",
        "/api/services/<name>/keys",
        in_path={"name": name_field()},
        roles=(ADMIN,),
        query=PageQuery,
        answer=KeyPage,
        summary="List the keys of a service",
    )
    def list_keys(self, call: Call, name: str) -> dict[str, Any]:
        """Every key, also those that have ended, without their secrets."""
        if not NAME.fullmatch(name):
            raise NotFound
        return self.auth.list_keys(name, call.query["limit"], call.query["cursor"])

    @api(
        "DELETE",
        "/api/services/<name>/keys/<key_id>",
        in_path={"name": name_field(), "key_id": key_id_field()},
        roles=(ADMIN,),
        answer="The key is revoked.",
        status=204,
        summary="Revoke a key",
    )
    def revoke_key(self, call: Call, name: str, key_id: str) -> None:
        """The key and every token of its service are refused within 2 s. Other keys of the service get new tokens."""
        if not (NAME.fullmatch(name) and KEY_ID.fullmatch(key_id)):
            raise NotFound
        self.auth.revoke_key(name, key_id, origin_of(call))
