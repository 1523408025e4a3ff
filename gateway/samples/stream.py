import json
import os
import time

import requests


def events(url, token, last=None):
    """Each event as (name, data). Reconnects, and stops at `end`. Raises HTTPError for 401, 403 and 404."""
    while True:
        headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
        if last is not None:
            headers["Last-Event-ID"] = last
        try:
            with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
                if answer.status_code == 204:
                    return
                if answer.status_code not in (429, 503):
                    answer.raise_for_status()
                event = {}
                for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
                    name, _, value = line.partition(": ")
                    event[name] = value
                    if name == "id":
                        last = value
                    if not line and "data" in event:
                        yield event["event"], json.loads(event["data"])
                        if event["event"] == "end":
                            return
                    if not line:
                        event = {}
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            pass
        time.sleep(1)


for name, data in events(os.environ["API"] + os.environ["STREAM"], os.environ["TOKEN"]):
    print(name, data["status"] if name == "end" else data["to"], flush=True)
