"""Post an order, follow it by its stream and cancel it, with Python and httpx."""

import json
import os
import time
import uuid

import httpx

login = {
    "username": os.environ.get("SHOP_USER", "customer"),
    "password": os.environ.get("SHOP_PASSWORD", "demo-customer"),
}
# The stream sends a comment every 15 s.
shop = httpx.Client(base_url=os.environ.get("API", "http://127.0.0.1:8000"), timeout=30)


def call(method, path, **request):
    """The JSON answer. Raises HTTPStatusError."""
    answer = shop.request(method, path, **request)
    answer.raise_for_status()
    return answer.json()


def follow(order_id, last="0"):
    """Print each step after step `last`, until the order is at rest. Returns the id of the last step."""
    while True:
        try:
            with shop.stream("GET", f"/api/orders/{order_id}/events", headers={"Last-Event-ID": last}) as answer:
                if answer.status_code == 204:
                    return last
                answer.raise_for_status()
                event = ""
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if name == "event":
                        event = value
                    elif name == "id":
                        last = value
                    elif name == "data" and event == "end":
                        return last
                    elif name == "data":
                        print("  step", event, "->", json.loads(value)["to"])
        except httpx.TransportError:
            pass
        time.sleep(1)  # the stream was cut: continue after the last step


token = call("POST", "/api/auth/token", json=login)["access_token"]
shop.headers["Authorization"] = f"Bearer {token}"

body = {
    "currency": "EUR",
    "payment_method": "mock_ok",
    "items": [{"sku": "lamp", "quantity": 1, "unit_price": 1999}],
}
order = call("POST", "/api/orders", json=body, headers={"Idempotency-Key": str(uuid.uuid4())})
path = f"/api/orders/{order['order_id']}"
print("posted", order["order_id"], order["status"])

last = follow(order["order_id"])
print("settled", call("GET", path)["status"])

order = call("POST", f"{path}/cancel", headers={"Idempotency-Key": str(uuid.uuid4())})
print("cancel", order["status"])

follow(order["order_id"], last)
print("ended", call("GET", path)["status"])
