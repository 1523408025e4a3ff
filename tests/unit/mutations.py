"""A byte-level fuzzer: changes well-formed inputs a little, so that most of them reach deep into a reader."""

import random

# What readers of HTTP, JSON, base64 and CSV treat in a way of their own.
TOKENS = (
    *(b"\r\n", b"\n", b"\r", b"\0", b"\t", b" ", b":", b";", b",", b'"', b'""', b"'", b"\\", b"/", b"%", b"%00", b"="),
    *(b"{", b"}", b"[", b"]", b"[" * 2000, b"null", b"true", b"NaN", b"1e400", b"-0", b"9" * 400, b"-1", b"0x10"),
    *(b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf", "\u202e".encode(), b"\\ud800", b"\\u0000"),
    *(b"HTTP/1.0", b"HTTP/2.0", b"Host: y\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b".", b"\r\n\r\n"),
    *(b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"HEAD ", b"PUT "),
    *(b"0001-01-01T00:00:00+23:59", b"9999-12-31T23:59:59Z", b"manifest", b"=1+1", b"A" * 9000),
)  # fmt: skip


def mutant(seeds: list[bytes], chance: random.Random) -> bytes:
    """One of the seeds with one to six changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(7):
            case 0:  # another byte
                data[place : place + 1] = bytes([chance.randrange(256)])
            case 1:  # another bit
                if place < len(data):
                    data[place] ^= 1 << chance.randrange(8)
            case 2:
                data[place:place] = chance.choice(TOKENS)
            case 3:  # a token over what was there
                token = chance.choice(TOKENS)
                data[place : place + len(token)] = token
            case 4:  # a piece is missing
                del data[place : place + chance.choice((1, 2, 8, 64, 4096))]
            case 5:  # a piece comes twice
                data[place:place] = data[place : place + chance.choice((1, 8, 64))]
            case _:  # the end of another seed
                other = chance.choice(seeds)
                data[place:] = other[chance.randrange(len(other) + 1) :]
    return bytes(data)
