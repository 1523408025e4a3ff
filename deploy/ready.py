"""Whether the service on a port of this container is ready: `python deploy/ready.py 8001` exits 0 or 1."""

import http.client
import sys

TIMEOUT_S = 4


def main(port: int) -> int:
    """0 when /readyz answers 200; otherwise 1, having printed why, which `docker inspect` shows."""
    # Not urllib: an environment that sets a proxy would send even this through it.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.read().decode("utf-8", "replace").strip())
        return 0 if answer.status == 200 else 1
    except (OSError, http.client.HTTPException) as error:
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
