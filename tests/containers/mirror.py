"""An index of Python packages for builds in stand-ins: what pip's index gives here, passed on.

A build sees neither this machine's settings of pip nor the certificates by which it reaches an index. Where pip is set
to an index or a certificate, what it reaches is passed on; elsewhere a build asks the index itself. The pip of the
build checks the hashes of requirements.lock, as always.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urljoin

import requests
from pip._internal.models.index import PyPI

PORT = 38413  # always the same: it is in an image, and builds shall find their layers again
FETCH_S = 60


def url(address: str) -> str | None:
    """The index as pip asks for it, served at this address; None if a build reaches it as well."""
    return f"http://{address}:{PORT}/simple" if _index() else None


@contextmanager
def serve(address: str) -> Iterator[None]:
    """Serve at this address of the machine while the block runs."""
    server = ThreadingHTTPServer((address, PORT), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.1,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _index() -> str:
    """The index that pip asks here, or nothing if it needs no setting for that."""
    if set_to := _setting("index-url"):
        return set_to.rstrip("/")
    return str(PyPI.simple_url).rstrip("/") if _setting("cert") else ""


def _setting(name: str) -> str:
    """A setting of pip, by its environment or its files."""
    asked = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout
    found = re.search(rf"(?m)^\S+\.{name}='(.*)'$", said)
    return found[1] if found else ""


def _here(url: str) -> str:
    return f"/file/{url.replace('://', '/', 1)}"


class _Handler(BaseHTTPRequestHandler):
    """/simple/NAME/ is a page of the index, /file/https/HOST/PATH a file; every link of a page leads here."""

    index = _index()

    def do_GET(self) -> None:
        page = self.path.startswith("/simple/")
        if page:
            url = f"{self.index}/{self.path.removeprefix('/simple/')}"
        else:
            url = self.path.removeprefix("/file/").replace("/", "://", 1)
        try:
            answer = requests.get(url, headers={"Accept": "text/html"} if page else {}, timeout=FETCH_S)
        except requests.RequestException as error:
            self.send_error(502, type(error).__name__)
            return
        content = answer.content
        if page:
            links = re.sub(r'href="([^"]+)"', lambda link: f'href="{_here(urljoin(url, link[1]))}"', answer.text)
            content = links.encode()
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/octet-stream"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""
