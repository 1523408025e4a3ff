#!/bin/sh
# Lint the documents, generate a client by each generator, compile a saga with it strictly, and run the saga.
# API is the address of a running gateway; FOLDER gets the tools (npm and uv install them) and the clients.
# Exits with 77 if the tools cannot be installed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export API="${API:-http://127.0.0.1:8000}"
folder=${FOLDER:-$(mktemp -d)}
mkdir -p "$folder"
cp "$here"/* "$here/../../contracts/asyncapi.json" "$folder"
cd "$folder"
export REDOCLY_TELEMETRY=off DO_NOT_TRACK=1

echo "== tools"
npm install --silent --no-audit --no-fund || exit 77
uv venv --quiet --clear python
uv pip install --quiet --python python/bin/python openapi-python-client==0.29.1 mypy==2.4.1 || exit 77
curl -sS --fail-with-body "$API/api/openapi.json" -o openapi.json

# The tools print warnings and exit with 0; here a warning is a failure. The exceptions and their reasons are in the
# files named redocly.yaml and spectral-*.yaml.
echo "== redocly"
npx redocly lint --config redocly.yaml --format=json openapi.json | node no_problems.mjs redocly
echo "== spectral"
npx spectral lint --ruleset spectral-oas.yaml --fail-severity=hint openapi.json
npx spectral lint --ruleset spectral-asyncapi.yaml --fail-severity=hint asyncapi.json
echo "== the AsyncAPI parser"
node no_problems.mjs asyncapi

echo "== openapi-python-client"
python/bin/openapi-python-client generate --path openapi.json --meta none --output-path shop --overwrite >/dev/null
# Without shop/client.py: the generator writes the same one for every document.
python/bin/mypy --strict --follow-imports=silent shop/models shop/api saga.py
python/bin/python saga.py

echo "== openapi-typescript"
npx openapi-typescript openapi.json --output schema.ts >/dev/null
echo "== orval"
npx orval --config ./orval.config.cjs >/dev/null
echo "== tsc --strict"
npx tsc
node built/saga_fetch.js
node built/saga_orval.js
