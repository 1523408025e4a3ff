"""A service that is asked to stop while the outside world does not answer."""

import time
from dataclasses import replace

from payment_service.service import PaymentService
from shared.config import Settings
from tests.databases import Databases
from tests.integration.support import Mail, container_of, reserved_event, until

QUEUE = "q.payment.inventory-reserved"


def test_calls_to_the_provider_are_abandoned_and_their_messages_go_back_to_the_queue(
    settings: Settings, database: Databases, mail: Mail
) -> None:
    deaf = replace(settings, payment_mode="timeout", provider_timeout_s=60.0)
    container = container_of(deaf, PaymentService)
    container.start()
    mail.tell([reserved_event()])
    until(lambda: database.rows("payment", "SELECT 1 FROM payments WHERE status = 'PENDING'"))

    began = time.monotonic()
    container.stop()

    assert time.monotonic() - began < 10
    assert until(lambda: mail.waiting(QUEUE)) == 1
    assert database.rows("payment", "SELECT 1 FROM consumed_messages") == []
