"""Messages as the client library hands them over, made into those that the rest of the code knows."""

from __future__ import annotations

import amqp

from shared.failures import Delivery


def delivery_of(message: amqp.Message) -> Delivery:
    """A message as the broker delivered it."""
    body = message.body
    return Delivery(
        tag=message.delivery_info["delivery_tag"],
        body=body.encode() if isinstance(body, str) else bytes(body),
        routing_key=message.delivery_info["routing_key"],
        message_id=message.properties.get("message_id"),
        headers=message.headers or {},
        properties={name: value for name, value in message.properties.items() if name != "application_headers"},
    )
