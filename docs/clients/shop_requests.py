"""Post an order, follow it by long polling and cancel it, with Python and requests."""

import os
import uuid

import requests
from requests.adapters import HTTPAdapter, Retry

api = os.environ.get("API", "http://127.0.0.1:8000")
shop = requests.Session()
# Every POST has an Idempotency-Key, so that it is safe to send it again.
retries = Retry(total=5, backoff_factor=0.5, status_forcelist=(429, 503), allowed_methods=None)
shop.mount(api, HTTPAdapter(max_retries=retries))


def call(method, path, **request):
    """The JSON answer. Raises HTTPError with the code and the trace of a refusal."""
    answer = shop.request(method, api + path, timeout=40, **request)
    if not answer.ok:
        error = answer.json()["error"]
        raise requests.HTTPError(f"{answer.status_code} {error['code']}, trace {error['traceId']}: {error['message']}")
    return answer.json()


def wait(order_id, *states):
    """The order as soon as it is in one of these states."""
    while True:
        order = call("GET", f"/api/orders/{order_id}", params={"wait": ",".join(states), "timeout": 25})
        if order["status"] in states:
            return order


login = {
    "username": os.environ.get("SHOP_USER", "customer"),
    "password": os.environ.get("SHOP_PASSWORD", "demo-customer"),
}
token = call("POST", "/api/auth/token", json=login)["access_token"]
shop.headers["Authorization"] = f"Bearer {token}"

body = {
    "currency": "EUR",
    "payment_method": "mock_ok",
    "items": [{"sku": "lamp", "quantity": 1, "unit_price": 1999}],
}
order = call("POST", "/api/orders", json=body, headers={"Idempotency-Key": str(uuid.uuid4())})
print("posted", order["order_id"], order["status"])

order = wait(order["order_id"], "PAID", "CANCELLED")
print("settled", order["status"], order["reason"] or "")

path = f"/api/orders/{order['order_id']}/cancel"
order = call("POST", path, headers={"Idempotency-Key": str(uuid.uuid4())})
print("cancel", order["status"])

order = wait(order["order_id"], "CANCELLED", "REFUND_FAILED")
print("ended", order["status"])
