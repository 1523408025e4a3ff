"""Whether the service on a port of this container is ready: `python deploy/ready.py 8001` exits 0 or 1."""

import http.client
import socket
import sys

TIMEOUT_S = 4
# A service listens on one of them or on both, as its HOST says.
LOOPBACK = ("127.0.0.1", "::1")


def main(port: int) -> int:
    """Return 0 when /readyz answers 200, else 1. Prints the answer, which `docker inspect` shows."""
    # urllib is not used: it would send this request through a proxy that the environment sets.
    connection = http.client.HTTPConnection(_listening(port), port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.read().decode("utf-8", "replace").strip())
        return 0 if answer.status == 200 else 1
    except (OSError, http.client.HTTPException) as error:
        print(error)
        return 1


def _listening(port: int) -> str:
    """The address at which somebody listens, else the first."""
    for address in LOOPBACK:
        try:
            socket.create_connection((address, port), timeout=TIMEOUT_S).close()
        except OSError:
            continue
        return address
    return LOOPBACK[0]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
