"""Every error raised on purpose.

One base, one class for each reason: the docstring is the meaning, `code` is the slug that clients, operators and
dead messages see. Status codes live in the gateway only. `shared.edge.rpc` registers these classes with Nameko,
so an error raised in one service arrives in its RPC caller as itself.
"""

from __future__ import annotations

from typing import Any, ClassVar


class EcomError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str = "", details: dict[str, Any] | None = None) -> None:
        self.message = message or (self.__doc__ or self.code).splitlines()[0]
        self.details = details or {}
        # Nameko rebuilds an exception from its args on the other side of an RPC.
        super().__init__(self.message, self.details)

    def __str__(self) -> str:
        return self.message


class BadRequest(EcomError):
    """The request is malformed."""

    code = "bad_request"


class BadJson(BadRequest):
    """The body is not valid JSON."""

    code = "bad_json"


class UnknownParameter(BadRequest):
    """A query parameter is not known here."""

    code = "unknown_parameter"


class InvalidCursor(BadRequest):
    """The cursor was not made by this endpoint for these filters."""

    code = "invalid_cursor"


class VersionMismatch(BadRequest):
    """X-API-Version names another version than the path."""

    code = "version_mismatch"


class IdempotencyKeyRequired(BadRequest):
    """An Idempotency-Key header is required."""

    code = "idempotency_key_required"


class IdempotencyKeyInvalid(BadRequest):
    """The Idempotency-Key must be 1 to 128 of A-Z a-z 0-9 _ - . :"""

    code = "idempotency_key_invalid"


class UnsupportedGrantType(BadRequest):
    """This grant_type is not supported: client_credentials and refresh_token are."""

    code = "unsupported_grant_type"


class Unauthenticated(EcomError):
    """A valid bearer token is required."""

    code = "unauthenticated"


class InvalidToken(Unauthenticated):
    """The bearer token is not valid, or no longer."""


class InvalidGrant(Unauthenticated):
    """The refresh token or the key is not valid, or no longer. Sign in again."""

    code = "invalid_grant"


class IdentityRefused(Unauthenticated):
    """The provider has not shown who this is, or nobody signs in by it as this user. Start the sign-in again."""

    code = "identity_refused"


class InvalidClient(Unauthenticated):
    """There is no service with this name and this key, or not any more."""

    code = "invalid_client"


class Forbidden(EcomError):
    """This user may not do that."""

    code = "forbidden"


class WrongPassword(Forbidden):
    """The password is wrong."""

    code = "wrong_password"


class RoleMissing(Forbidden):
    """This user may not do that. None of their roles allows it."""


class SignInAgain(Forbidden):
    """Only those may do that who have signed in within the last 10 minutes."""

    code = "sign_in_again"


class NotFound(EcomError):
    """There is nothing here by that name."""

    code = "not_found"


class MethodNotAllowed(EcomError):
    """This path does not answer that method."""

    code = "method_not_allowed"


class Conflict(EcomError):
    """The thing is not in a state that allows this."""

    code = "conflict"


class IdempotencyInProgress(Conflict):
    """A request with this Idempotency-Key is still at work."""

    code = "idempotency_in_progress"


class BelowReserved(Conflict):
    """Stock on hand cannot fall below what is reserved."""

    code = "below_reserved"


class HasRecipe(Conflict):
    """A sku that is made by a recipe has no stock of its own."""

    code = "has_recipe"


class HasStock(Conflict):
    """A sku with stock of its own cannot have a recipe."""

    code = "has_stock"


class OverReceived(Conflict):
    """More has come than the purchase order has open."""

    code = "over_received"


class VersionMoved(Conflict):
    """It changed since that version was read."""

    code = "version_moved"


class NotForSale(Conflict):
    """A sku of the order is not for sale now. The details name each line."""

    code = "not_for_sale"


class PriceChanged(Conflict):
    """A unit price of the order is not the one that holds now. The details have the prices now: ask again with them."""

    code = "price_changed"


class OwnRoles(Conflict):
    """Nobody changes their own roles."""

    code = "own_roles"


class LastAdmin(Conflict):
    """Somebody must stay who is an admin and may sign in."""

    code = "last_admin"


class IdentityTaken(Conflict):
    """Another user signs in with this identity."""

    code = "identity_taken"


class LinkRequired(Conflict):
    """Somebody has this address. They get a mail with a link that links this identity to them."""

    code = "link_required"


class VersionGone(EcomError):
    """This version of the API, or this route, has ended. Link and details name what replaces it."""

    code = "version_gone"


class PreconditionFailed(EcomError):
    """A condition in a header of the request is not met."""

    code = "precondition_failed"


class RequestTimeout(EcomError):
    """The request body did not arrive in time."""

    code = "request_timeout"


class PayloadTooLarge(EcomError):
    """The body is too large."""

    code = "payload_too_large"


class TargetTooLong(EcomError):
    """The path and the query are too long."""

    code = "target_too_long"


class HeadersTooLarge(EcomError):
    """The request headers are too large."""

    code = "headers_too_large"


class ExpectationFailed(EcomError):
    """The only expectation that can be met is 100-continue."""

    code = "expectation_failed"


class NotImplementedHere(EcomError):
    """The server does not know this method or this transfer coding."""

    code = "not_implemented"


class VersionNotSupported(EcomError):
    """This server speaks HTTP/1.1."""

    code = "http_version_not_supported"


class UnsupportedMediaType(EcomError):
    """The body must be application/json."""

    code = "unsupported_media_type"


class UnsupportedCoding(UnsupportedMediaType):
    """The body must not be compressed: Content-Encoding is not supported."""

    code = "unsupported_content_encoding"


class ValidationFailed(EcomError):
    """The body breaks a rule."""

    code = "validation_failed"


class IdempotencyKeyReused(ValidationFailed):
    """This Idempotency-Key was used with another body."""

    code = "idempotency_key_reused"


class UnknownSku(ValidationFailed):
    """A sku of the order is not on the menu. An admin lists it by PUT /api/menu/offers/{sku}."""

    code = "unknown_sku"


class NoPrice(ValidationFailed):
    """A sku of the order has no price in this currency and quantity. The details name the currencies there are."""

    code = "no_price"


class TokenInvalid(ValidationFailed):
    """The token from the mail is not valid, or no longer. Ask for a new mail."""

    code = "token_invalid"


class PasswordRefused(ValidationFailed):
    """The password has fewer than 12 characters, or is one that is easily guessed."""

    code = "password_refused"


class EmailUnproven(ValidationFailed):
    """The provider does not say that this address is proven. Register by mail, and link the identity then."""

    code = "email_unproven"


class ServiceRole(ValidationFailed):
    """The role `service` belongs to services, and a service has no other user's roles."""

    code = "service_role"


class RateLimited(EcomError):
    """Too many requests."""

    code = "rate_limited"


class TooManyConnections(RateLimited):
    """Too much of one client is open: connections, waits, streams or exports."""

    code = "too_many_connections"


class SignInPaused(RateLimited):
    """Too many sign-ins failed. A device that has signed in before, or the mail that resets a password, still works."""

    code = "sign_in_paused"


class TooManyOrders(RateLimited):
    """This user has too many open orders, or too many units in them. Pay or cancel some first."""

    code = "too_many_orders"


class ServiceUnavailable(EcomError):
    """A service did not answer in time."""

    code = "unavailable"


# Why a message died: the code is its x-reason in the DLQ.


class DeadMessage(EcomError):
    """A message that can never succeed."""

    code = "poison"


class Poison(DeadMessage):
    """The body is not a JSON object."""

    code = "poison"


class InvalidSchema(DeadMessage):
    """The body does not match the schema of its event type."""

    code = "invalid_schema"


class UnknownType(DeadMessage):
    """No event of that type and version is in the catalogue, or this queue does not take it."""

    code = "unknown_type"


# The codes of messages that the consumer cannot read; another version may have written them.
UNREADABLE = (Poison.code, InvalidSchema.code, UnknownType.code)


class Forged(DeadMessage):
    """The event does not come from the service that publishes its type."""

    code = "forged"


class UnknownOrder(DeadMessage):
    """The event is about an order that does not exist here."""

    code = "unknown_order"


class UnexpectedEvent(DeadMessage):
    """The state table has no row for this event in this state."""

    code = "unexpected_event"


class Contradiction(UnexpectedEvent):
    """The event says another amount, currency or id than this service knows."""

    code = "contradiction"


# These pause a whole consumer and count nothing against its messages.


class CannotWork(EcomError):
    """The service itself cannot work now: nothing is wrong with the message."""

    code = "cannot_work"


class PublishFailed(CannotWork):
    """The broker did not confirm in time."""

    code = "publish_failed"


# How /readyz and logs begin the name of an alarm; what there is too little of follows.
IN_ALARM = "the broker is in alarm"


class BrokerInAlarm(PublishFailed):
    """The broker is in alarm: it has too little memory or disk, and takes no message."""

    code = "broker_in_alarm"


class ProviderAway(CannotWork):
    """The payment provider answers no call."""

    code = "provider_away"


# These make one message wait for its next try.


class HeldUp(EcomError):
    """A lock or a slow statement holds this message up: nothing is wrong with it, and others can be handled."""

    code = "held_up"


class OverShare(HeldUp):
    """Other calls for the same customer take too long: this message's turn comes later, and others can be handled."""

    code = "over_share"


class ProviderTimeout(EcomError):
    """The payment provider did not answer in time; whether it charged is unknown."""

    code = "provider_timeout"


class ConfigurationFault(EcomError):
    """A setting is missing, malformed or not allowed in this environment."""

    code = "configuration"


class TopologyDrift(EcomError):
    """The broker does not look like the table of the topology."""

    code = "topology_drift"
