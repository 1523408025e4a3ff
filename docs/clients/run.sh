#!/bin/sh
# Run each client of this folder against a running stack, where its tool is there. API is the gateway's address.
# Exits with 1 if a client did not bring its order from posted to cancelled.
set -u
cd "$(dirname "$0")"
export API="${API:-http://127.0.0.1:8000}"

# An admin puts lamps on the menu and on stock.
token=$(curl -sS --fail-with-body "$API/api/auth/token" -H 'Content-Type: application/json' \
  -d "{\"username\": \"admin\", \"password\": \"${ADMIN_PASSWORD:-demo-admin}\"}" |
  sed 's/.*"access_token": *"\([^"]*\)".*/\1/')
# put PATH BODY
put() {
  curl -sS --fail-with-body -o /dev/null -X PUT "$API$1" -H "Authorization: Bearer $token" \
    -H 'Content-Type: application/json' -d "$2" || exit 1
}
put /api/menu/offers/lamp '{"currency": "EUR", "unit_price": 1999}'
put /api/stocks/lamp '{"on_hand": 1000}'

failed=0

# run NAME COMMAND...: the client, and whether its order ended as it should.
run() {
  name=$1
  shift
  if output=$("$@" 2>&1) && [ "$(echo "$output" | tail -n 1)" = "ended CANCELLED" ]; then
    echo "$name: ok"
  else
    echo "$name: FAILED"
    echo "$output"
    failed=1
  fi
}

skip() { echo "$1: skipped, $2 is not here"; }

python=${PYTHON:-python3}
if "$python" -c 'import requests' 2>/dev/null; then run requests "$python" shop_requests.py; else skip requests requests; fi
if "$python" -c 'import httpx' 2>/dev/null; then
  run httpx "$python" shop_httpx.py
elif command -v uv >/dev/null; then
  run httpx uv run --quiet --no-project --with httpx python shop_httpx.py
else
  skip httpx httpx
fi
if command -v node >/dev/null; then run fetch node shop_fetch.mjs; else skip fetch node; fi
if command -v java >/dev/null; then run HttpClient java Shop.java; else skip HttpClient java; fi
run curl sh shop_curl.sh
exit "$failed"
