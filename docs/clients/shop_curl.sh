#!/bin/sh
# Post an order with a chunked body, follow it by its stream and cancel it, with curl.
set -eu
api=${API:-http://127.0.0.1:8000}

# The text of a field in the JSON on standard input.
text() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"; }

# A new key for each POST. To repeat a POST whose answer was lost, send the same key.
key() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

token=$(curl -sS --fail-with-body "$api/api/auth/token" -H 'Content-Type: application/json' \
  -d "{\"username\": \"${SHOP_USER:-customer}\", \"password\": \"${SHOP_PASSWORD:-demo-customer}\"}" | text access_token)

call() { curl -sS --fail-with-body -H "Authorization: Bearer $token" "$@"; }

# Curl sends standard input (-T -) as it comes, in chunks.
order=$(echo '{"currency": "EUR", "payment_method": "mock_ok",
               "items": [{"sku": "lamp", "quantity": 1, "unit_price": 1999}]}' |
  call "$api/api/orders" -X POST -T - -H 'Content-Type: application/json' -H "Idempotency-Key: $(key)")
path=$api/api/orders/$(echo "$order" | text order_id)
echo "posted $(echo "$order" | text order_id) $(echo "$order" | text status)"

# The gateway closes the stream after the event `end`.
call -N --max-time 600 "$path/events" | sed -n 's/^event: /  step /p'
echo "settled $(call "$path" | text status)"

echo "cancel $(call "$path/cancel" -X POST -H "Idempotency-Key: $(key)" | text status)"

call -N --max-time 600 "$path/events" | sed -n 's/^event: /  step /p'
echo "ended $(call "$path" | text status)"
