"""Where a request begins and ends, and whom it asks for, by RFC 9112.

A request that two programs could read in two ways is refused: a proxy in front of us might see another request than we
do. Lines must be exactly as the RFC writes them, because the standard library's parser takes much that is not.
"""

from __future__ import annotations

import errno
import re
from email.message import Message
from typing import Any, NamedTuple

from werkzeug import exceptions
from werkzeug.exceptions import (
    BadRequest,
    ExpectationFailed,
    HTTPException,
    RequestEntityTooLarge,
    RequestHeaderFieldsTooLarge,
)

UnknownHere = exceptions.NotImplemented  # under a name that is not Python's own

CRLF = b"\r\n"
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) (HTTP/([0-9])\.[0-9])\r\n")
FIELD_LINE = re.compile(rb"(" + TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)\r\n")
# As many as Python's own server takes.
MAX_FIELDS = 99
DIGITS = re.compile(r"[0-9]{1,18}[ \t]*")
# Narrower than RFC 3986: no server's name has other characters, and pages show a host inside a shell command.
HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{0,5})?")
ABSOLUTE = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE)

CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
MAX_CHUNK_LINE = 1024
# All chunk extensions of a body together, and all its trailers. Nobody reads either; some clients sign chunks.
MAX_EXTENSIONS_BYTES = 8 * 1024
MAX_TRAILERS_BYTES = 8 * 1024


class HTTPVersionNotSupported(HTTPException):
    """Werkzeug has no class for this status of RFC 9110, section 15.6.6."""

    code = 505
    description = "This server speaks HTTP/1.1."


class Framing(NamedTuple):
    """How the body of a request arrives."""

    length: int
    chunked: bool
    continues: bool  # the client waits for `100 Continue` before it sends the body


class RequestLine(NamedTuple):
    """The first line of a request."""

    method: str
    target: str
    version: str


def read_request_line(line: bytes) -> RequestLine:
    """What a request line says. Raises BadRequest, or HTTPVersionNotSupported for anything but HTTP/1."""
    match = REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadRequest("The request line must be `METHOD target HTTP/1.1`.")
    method, target, version, major = match.groups()
    if major != b"1":
        raise HTTPVersionNotSupported
    # Some clients take a redirect to a path that begins with two slashes for one to another host.
    target = b"/" + target.lstrip(b"/") if target.startswith(b"//") else target
    return RequestLine(method.decode(), target.decode(), version.decode())


def read_fields(file: Any) -> Message:
    """The header fields of a request. Each line must be a field, or the empty line that ends the head.

    Raises BadRequest, RequestHeaderFieldsTooLarge, or OSError when the client has gone. Python's own parser reads
    mail: it takes lines that no request may have, and several times as long.
    """
    fields = Message()
    while (line := file.readline()) != CRLF:
        if not line.endswith(b"\n"):
            raise _gone()
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise BadRequest("A header line must be `Name: value`, without control characters, and end in CR LF.")
        if len(fields) == MAX_FIELDS:
            raise RequestHeaderFieldsTooLarge
        fields.set_raw(match[1].decode(), match[2].decode("latin-1").lstrip(" \t"))
    return fields


def framing_of(headers: Message, version: str) -> Framing:
    """How the body arrives. Raises BadRequest, ExpectationFailed, UnknownHere."""
    lengths, codings = headers.get_all("Content-Length", []), _words(headers, "Transfer-Encoding")
    # Python's int() takes "+5" and "5_0" too.
    if len(lengths) > 1 or not all(DIGITS.fullmatch(length) for length in lengths):
        raise BadRequest("One Content-Length, in digits, is allowed.")
    if "Transfer-Encoding" in headers:
        _check_codings(codings, bool(lengths), version)
    length = int(lengths[0]) if lengths else 0
    expected = _words(headers, "Expect") if version != "HTTP/1.0" else []
    if expected not in ([], ["100-continue"]):
        raise ExpectationFailed
    return Framing(length, bool(codings), bool(expected) and bool(length or codings))


def _check_codings(codings: list[str], has_length: bool, version: str) -> None:
    if has_length:
        raise BadRequest("Content-Length and Transfer-Encoding do not go together.")
    if version == "HTTP/1.0":
        raise BadRequest("HTTP/1.0 has no Transfer-Encoding.")
    if codings.count("chunked") != 1 or codings[-1] != "chunked":
        raise BadRequest("The last Transfer-Encoding must be `chunked`, once.")
    if len(codings) > 1:
        raise UnknownHere("The only Transfer-Encoding here is `chunked`.")


def check_host(headers: Message, version: str) -> None:
    """Raises BadRequest when it is not clear which host is asked."""
    hosts = headers.get_all("Host", [])
    if len(hosts) > 1 or (not hosts and version != "HTTP/1.0"):
        raise BadRequest("One Host header is required.")
    if hosts and hosts[0].strip(" \t") and not HOST.fullmatch(hosts[0].strip(" \t")):
        raise BadRequest("The Host header must be a host, or host:port.")


def origin_form(target: str, method: str, headers: Message) -> str:
    """The path and query of a request target. The host of an absolute one replaces the Host header.

    Raises BadRequest.
    """
    if target.startswith("/") or (target, method) == ("*", "OPTIONS") or method == "CONNECT":
        return target
    match = ABSOLUTE.fullmatch(target)
    if match is None or not HOST.fullmatch(match[1]):
        raise BadRequest("The request target must be a path, or a URL with a host.")
    del headers["Host"]
    headers["Host"] = match[1]
    return match[2] if match[2].startswith("/") else f"/{match[2]}"


def ends_connection(headers: Message, version: str) -> bool:
    """Whether no further request comes on the connection. A client of HTTP/1.0 must ask for that."""
    wanted = _words(headers, "Connection")
    return "close" in wanted or (version == "HTTP/1.0" and wanted != ["keep-alive"])


def read_body(file: Any, framing: Framing, at_most: int) -> bytes:
    """The whole body, of `at_most` bytes. Raises an HTTPException, or OSError when the client has gone."""
    if framing.chunked:
        return _read_chunks(file, at_most)
    if framing.length > at_most:
        raise RequestEntityTooLarge
    return _exactly(file, framing.length)


def _read_chunks(file: Any, at_most: int) -> bytes:
    body, extensions = bytearray(), 0
    while True:
        match = CHUNK_LINE.fullmatch(_line(file, MAX_CHUNK_LINE))
        extensions += len(match[2] or b"") if match else 0
        if match is None or extensions > MAX_EXTENSIONS_BYTES:
            raise BadRequest("A chunk must begin with its size in hexadecimal digits.")
        size = int(match[1], 16)
        if size == 0:
            break
        if len(body) + size > at_most:
            raise RequestEntityTooLarge
        body += _exactly(file, size)
        if _exactly(file, len(CRLF)) != CRLF:
            raise BadRequest("A chunk is longer than its size.")
    _skip_trailers(file)
    return bytes(body)


def _skip_trailers(file: Any) -> None:
    """RFC 9112, section 7.1.2: fields that nobody here knows are discarded, never merged into the head."""
    left = MAX_TRAILERS_BYTES
    while (line := _line(file, left + len(CRLF))) != CRLF:
        left -= len(line)
        if left < 0:
            raise RequestHeaderFieldsTooLarge
        if not FIELD_LINE.fullmatch(line):
            raise BadRequest("A trailer must be `Name: value`.")


def _line(file: Any, at_most: int) -> bytes:
    """A line, or the first `at_most` bytes of a longer one."""
    line: bytes = file.readline(at_most)
    if not line.endswith(b"\n") and len(line) < at_most:
        raise _gone()
    return line


def _exactly(file: Any, size: int) -> bytes:
    read: bytes = file.read(size)
    if len(read) < size:
        raise _gone()
    return read


def _gone() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, "the client left before its request was complete")


def _words(headers: Message, name: str) -> list[str]:
    """The words of a header that is a list, in lower case."""
    words = (word.strip(" \t").lower() for value in headers.get_all(name, []) for word in value.split(","))
    return [word for word in words if word]
