"""The HTTP API as commands call it: as somebody with a token, and again where the gateway refuses for a while."""

from __future__ import annotations

import json
import os
import time
from types import TracebackType
from typing import Any

from ops.cli.home import environment, hint
from shared.config import read as read_settings
from shared.errors import CannotWork, Conflict

# A user's bearer token. In development the commands sign in by themselves.
TOKEN_VARIABLE = "ECOM_TOKEN"

TIMEOUT_S = 30.0
# A request that is refused for a while is repeated: nothing changes when it was done already.
TRIES, WAIT_S = 20, 1.0
AGAIN = (429, 503)


def own_gateway() -> str:
    """Where the gateway of this machine listens."""
    return f"http://127.0.0.1:{read_settings(environment(), 'gateway').port('gateway')}"


def as_body(value: Any) -> bytes:
    """Compact JSON, with letters as they are: written as numbers, some take twelve bytes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Api:
    """One gateway, called with the token of ECOM_TOKEN, or with that of the development user `admin`."""

    def __init__(self, url: str) -> None:
        import requests

        self.url = url.rstrip("/")
        self._http = requests.Session()
        self._http.headers["Content-Type"] = "application/json"
        self._http.headers["Authorization"] = f"Bearer {os.environ.get(TOKEN_VARIABLE) or _development_token(url)}"

    def __enter__(self) -> Api:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def send(self, method: str, path: str, body: Any = None, key: str = "") -> dict[str, Any]:
        """The JSON that is answered; `key` is the Idempotency-Key.

        Raises CannotWork when the gateway does not answer, and Conflict, with its code and details, when it refuses.
        """
        import requests

        headers = {"Idempotency-Key": key} if key else {}
        data = None if body is None else as_body(body)
        why = ""
        for _ in range(TRIES):
            try:
                answer = self._http.request(method, f"{self.url}{path}", data=data, headers=headers, timeout=TIMEOUT_S)
            except requests.RequestException as error:
                why, wait_s = str(error), WAIT_S
            else:
                if answer.ok:
                    return dict(answer.json())
                why, wait_s = answer.text.strip(), float(answer.headers.get("Retry-After", WAIT_S))
                if answer.status_code not in AGAIN and "Retry-After" not in answer.headers:
                    raise _refusal(answer)
            time.sleep(wait_s)
        raise CannotWork(why)


def _refusal(answer: Any) -> Conflict:
    try:
        error = answer.json()["error"]
        return Conflict(f"{error['message']} ({error['code']})", dict(error["details"]))
    except (ValueError, KeyError, TypeError):  # no gateway of ours
        return Conflict(f"{answer.status_code}: {answer.text.strip()}")


def _development_token(url: str) -> str:
    """A token of the development user `admin`. Raises CannotWork where there is none, as in production."""
    import requests

    from ops.cli.flow import Flow

    try:
        return Flow(url).token("admin")
    except requests.ConnectionError as error:
        raise CannotWork(f"no gateway answers at {url}: {'; '.join(filter(None, [hint(), str(error)]))}") from error
    except requests.RequestException as error:
        raise CannotWork(f"{TOKEN_VARIABLE} is not set, and nobody can sign in without it: {error}") from error
