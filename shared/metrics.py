"""The metrics. Each process serves its own registry at /metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from shared.version import VERSION

BUILD_INFO = Gauge("ecom_build_info", "1, labelled with the version of this process.", ["version"])
BUILD_INFO.labels(VERSION).set(1)
REQUESTS = Counter("ecom_http_requests_total", "HTTP requests answered.", ["service", "method", "route", "status"])
REQUEST_SECONDS = Histogram("ecom_http_request_seconds", "Time to answer an HTTP request.", ["service", "route"])
DEPRECATED_REQUESTS = Counter(
    "ecom_deprecated_requests_total", "Requests for what is deprecated.", ["route", "version"]
)
EVENTS = Counter("ecom_events_total", "Messages settled, by what became of them.", ["service", "queue", "outcome"])
FORGED = Counter("ecom_forged_messages_total", "Events refused because of the user who sent them.", ["queue", "user"])
REFUSED_CALLS = Counter(
    "ecom_refused_calls_total", "Calls and replies refused because of the user who sent them.", ["service", "user"]
)
CALLS = Counter("ecom_rpc_calls_total", "RPC calls answered: done, refused or failed.", ["service", "outcome"])
CALL_SECONDS = Histogram("ecom_rpc_seconds", "Time to answer an RPC call.", ["service"])
BATCH_SECONDS = Histogram("ecom_batch_seconds", "Time to settle one batch of messages.", ["service", "queue"])
PAUSES = Counter("ecom_pauses_total", "Times a consumer paused because its service could not work.", ["queue"])
OLDEST_UNSETTLED = Gauge(
    "ecom_oldest_unsettled_seconds", "Age of the oldest message that came to a consumer and is not settled.", ["queue"]
)
DEATHS = Counter("ecom_dead_messages_total", "Messages sent to a DLQ, by reason.", ["queue", "reason"])
DEAD_LETTERS = Gauge("ecom_dead_letters", "Messages in a DLQ, also those that somebody reads.", ["queue"])
QUEUE_MESSAGES = Gauge("ecom_queue_messages", "Messages ready in a main or retry queue.", ["queue"])
QUEUE_CONSUMERS = Gauge("ecom_queue_consumers", "Consumers of a main queue.", ["queue"])
WAITING = Gauge("ecom_waiting_clients", "Clients that wait for an order to change.", ["service"])
OUTBOX_PENDING = Gauge("ecom_outbox_pending", "Events told and not yet published.", ["service"])
OUTBOX_HELD = Gauge("ecom_outbox_held", "Events that could not be published and hold back their order.", ["service"])
OUTBOX_OLDEST = Gauge("ecom_outbox_oldest_seconds", "Age of the oldest unpublished event.", ["service"])
OUTBOX_LEADER = Gauge("ecom_outbox_leader", "1 where this replica's relay leads.", ["service"])
CIRCUIT_OPEN = Gauge("ecom_provider_circuit_open", "1 while this replica leaves its provider alone.", ["service"])
AUDIT_UNSEALED = Gauge("ecom_audit_unsealed", "Release events that no seal covers yet.", ["service"])
AUDIT_OLDEST = Gauge("ecom_audit_unsealed_oldest_seconds", "Age of the oldest release event without seal.", ["service"])
AUDIT_TROUBLE = Gauge("ecom_audit_trouble", "1 while the release audit cannot be sealed or was changed.", ["service"])
READY = Gauge("ecom_ready", "1 if the last readiness probe was answered with yes.", ["service"])
WAS_READY = Gauge("ecom_was_ready", "1 once a readiness probe of this process was answered with yes.", ["service"])
UNREADY = Counter("ecom_unready_total", "Readiness probes answered with no, after the first yes.", ["service"])
OFFERS_BEHIND = Gauge("ecom_offers_behind", "Offers of which the last comparison found a later version in the catalog.")
OFFERS_AHEAD = Gauge(
    "ecom_offers_ahead", "Offers of which the copy had a later version than the catalog, at the last comparison."
)
REVOCATIONS_AGE = Gauge(
    "ecom_revocations_age_seconds", "How long ago this replica knew everything that was revoked.", ["service"]
)
