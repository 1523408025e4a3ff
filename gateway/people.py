"""People, as admins, operators and auditors see them: who they are, what they may do, and what was done with that."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import fields, validate

from gateway.api.enumerations import ROLE, USER_KIND
from gateway.api.fields import (
    EXAMPLE_ID,
    MAX_EMAIL,
    OTHER_ID,
    SPACES,
    AnswerSchema,
    PageQuery,
    RequestSchema,
    Text,
    Word,
    cursor_field,
    datetime_field,
    field_metadata,
    filters_in,
    integer_field,
    list_field,
    text_field,
    uuid_field,
    word_field,
)
from gateway.api.http import AUDITORS, OPERATORS, Call, api
from gateway.origins import origin_of
from gateway.roles import RoleField, roles_field
from shared.auth import ADMIN, MAX_NAME_LENGTH
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import Conflict, LastAdmin, NotFound, OwnRoles, ServiceRole

MAX_REASON = 500
MOST_IDS = 100
# Names that older versions took are ids, too: whatever has no space, and is one piece of a path.
USER_ID = re.compile(rf"[^{SPACES}/.][^{SPACES}/]*")


def user_id_field(**kwargs: Any) -> Text:
    """A new field for the id of a user: a UUID, the name of one who was made at a terminal, or `service:<name>`."""
    return Text(EXAMPLE_ID, at_most=MAX_NAME_LENGTH, **kwargs)


def reason_field(**kwargs: Any) -> Text:
    """A new field for the reason of a change."""
    return Text("left the company", "kept in the record; it names nobody", at_most=MAX_REASON, **kwargs)


class PeopleQuery(PageQuery):
    """Which people to list."""

    email = Text("ann@example.com", "only the person with this address, in any case", at_most=MAX_EMAIL)
    role = RoleField("only people with this role")


class PeopleRequest(RequestSchema):
    """Whose names and addresses to read."""

    ids = fields.List(user_id_field(), validate=validate.Length(1, MOST_IDS), required=True)


class RolesRequest(RequestSchema):
    """All roles that a person is to have."""

    roles = roles_field(required=True)
    reason = reason_field(load_default="", at_least=0)


class ReasonRequest(RequestSchema):
    """Why it is done."""

    reason = reason_field(required=True)


class PersonInBatch(AnswerSchema):
    """A person: what others show of them. Of one who was erased only the id is left."""

    user_id = text_field(EXAMPLE_ID)
    name = text_field("Ann", allow_none=True)
    email = text_field("ann@example.com", "an address that was proven", allow_none=True)
    roles = fields.List(Word(ROLE, metadata=field_metadata("customer")), required=True)
    disabled = fields.Boolean(required=True, metadata=field_metadata(False, "whether they may not sign in"))


class Person(PersonInBatch):
    """A person, or a service that has a key."""

    kind = word_field(USER_KIND, "person")
    created_at = datetime_field()


class PeoplePage(AnswerSchema):
    """People by user_id."""

    items = list_field(Person)
    next_cursor = cursor_field()


class PeopleInBatch(AnswerSchema):
    """People by user_id. Ids that nobody has are left out."""

    items = list_field(PersonInBatch)


class AccountEvent(AnswerSchema):
    """Something that was done with an account."""

    id = integer_field(1204, "grows with time")
    at = datetime_field()
    event = text_field("roles_changed")
    user_id = text_field(EXAMPLE_ID, allow_none=True)
    actor_id = text_field("admin", "who did it, if they were signed in", allow_none=True)
    session_id = uuid_field("the session of the actor", OTHER_ID, allow_none=True)
    network = text_field("203.0.113.7", "an IPv4 address, or the /64 of an IPv6 address", allow_none=True)
    details = fields.Dict(
        required=True,
        metadata=field_metadata(
            {"roles": ["customer"], "before": [], "reason": "new"}, "what it was; no personal data"
        ),
    )


class AccountEvents(AnswerSchema):
    """What was done with an account, newest first."""

    items = list_field(AccountEvent)
    next_cursor = cursor_field()


class People:
    """Routes under /api/users."""

    auth = RpcProxy("auth_service")

    @api("GET", "/api/users", roles=(ADMIN,), query=PeopleQuery, answer=PeoplePage, summary="List people")
    def list_people(self, call: Call) -> dict[str, Any]:
        """A page of all people and services, also of the disabled, by user_id."""
        query = call.query
        return self.auth.list_people(query["limit"], query["cursor"], filters_in(query))

    @api(
        "POST",
        "/api/users/batch",
        roles=OPERATORS,
        body=PeopleRequest,
        answer=PeopleInBatch,
        summary="Read the names of people",
    )
    def look_up_people(self, call: Call) -> dict[str, Any]:
        """Names and addresses for the ids that orders and records hold. It is recorded who has asked for whom."""
        return self.auth.look_up_people(call.body["ids"], origin_of(call))

    @api(
        "GET",
        "/api/users/<user_id>",
        in_path={"user_id": user_id_field(pattern=USER_ID)},
        roles=(ADMIN,),
        answer=Person,
        summary="Read a person",
    )
    def get_person(self, call: Call, user_id: str) -> dict[str, Any]:
        """One person, or a service that has a key."""
        return self.auth.get_person(_user_id(user_id))

    @api(
        "GET",
        "/api/users/<user_id>/events",
        in_path={"user_id": user_id_field(pattern=USER_ID)},
        roles=AUDITORS,
        query=PageQuery,
        answer=AccountEvents,
        summary="List what was done with an account",
    )
    def person_events(self, call: Call, user_id: str) -> dict[str, Any]:
        """Sign-ins, changes and who made them, newest first. They are kept for 400 days."""
        return self.auth.person_events(_user_id(user_id), **call.query)

    @api(
        "PUT",
        "/api/users/<user_id>/roles",
        in_path={"user_id": user_id_field(pattern=USER_ID)},
        roles=(ADMIN,),
        body=RolesRequest,
        answer=Person,
        fails=(OwnRoles, LastAdmin, ServiceRole),
        summary="Give and take roles",
    )
    def put_roles(self, call: Call, user_id: str) -> dict[str, Any]:
        """The person with these roles and no others. Within 2 s their tokens are refused; new ones hold the new roles.

        Nobody changes their own roles, and the last admin who may sign in stays one. `service` belongs to services.
        """
        return self.auth.put_roles(_user_id(user_id), call.body["roles"], call.body["reason"], origin_of(call))

    @api(
        "POST",
        "/api/users/<user_id>/disable",
        in_path={"user_id": user_id_field(pattern=USER_ID)},
        roles=(ADMIN,),
        body=ReasonRequest,
        answer=Person,
        fails=(OwnRoles, LastAdmin),
        summary="Shut a person out",
    )
    def disable_person(self, call: Call, user_id: str) -> dict[str, Any]:
        """Within 2 s all that they are signed in with is refused, and they cannot sign in again until they are enabled.

        Their orders go on. To disable somebody again changes nothing.
        """
        return self.auth.disable_person(_user_id(user_id), call.body["reason"], origin_of(call))

    @api(
        "POST",
        "/api/users/<user_id>/enable",
        in_path={"user_id": user_id_field(pattern=USER_ID)},
        roles=(ADMIN,),
        body=ReasonRequest,
        answer=Person,
        fails=(OwnRoles, Conflict),
        summary="Let a person in again",
    )
    def enable_person(self, call: Call, user_id: str) -> dict[str, Any]:
        """They may sign in again; what was ended stays so. 409 for a person who is erased, or about to be."""
        return self.auth.enable_person(_user_id(user_id), call.body["reason"], origin_of(call))

    @api(
        "DELETE",
        "/api/users/<user_id>/sessions",
        in_path={"user_id": user_id_field(pattern=USER_ID)},
        roles=(ADMIN,),
        answer="All their sessions are over.",
        status=204,
        summary="End all sessions of a person",
    )
    def end_sessions_of(self, call: Call, user_id: str) -> None:
        """Within 2 s all that they are signed in with is refused. They may sign in again."""
        self.auth.end_sessions_of(_user_id(user_id), origin_of(call))


def _user_id(text: str) -> str:
    """The id of a path. Raises NotFound for one that nobody can have."""
    if len(text) > MAX_NAME_LENGTH or not USER_ID.fullmatch(text):
        raise NotFound
    return text
