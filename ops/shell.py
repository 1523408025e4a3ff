"""`make shell`: Nameko's own shell, on the broker of this environment.

What `nameko shell --broker URI` opens, but the URI holds a password, and stays out of the process list and the screen.
A script on standard input prints what it prints and nothing else, and ends at its first error: exit 1.
"""

from __future__ import annotations

import sys
import warnings

from shared.config import read
from shared.errors import EcomError

BANNER = """\
n.rpc.order_service.get_order("...")                calls a service, as the user `shell`
n.dispatch_event("ecom", "order.created", {...})    tells an event
README.md drives an order from here; Ctrl-D ends."""


def main() -> int:
    """Run the shell until its input ends. 0 done, 1 a script failed, 3 there is no broker."""
    with warnings.catch_warnings():
        # Nameko's imports speak of pkg_resources and eventlet, which is nothing to whoever calls a service.
        warnings.simplefilter("ignore")
        from amqp.exceptions import AMQPError
        from nameko.cli.shell import ShellRunner, make_nameko_helper

    try:
        helper = make_nameko_helper({"AMQP_URI": read().amqp_uri})
    except (OSError, AMQPError, EcomError) as error:
        print(f"ecom: no shell without a broker: {error}", file=sys.stderr)
        return 3
    interactive = sys.stdin.isatty()
    if not interactive:
        sys.ps1 = sys.ps2 = ""
    try:
        ShellRunner(BANNER if interactive else "", {"n": helper}).start_shell(name=None)
    except Exception:  # of a script; the shell has printed it already
        return 1
    finally:
        helper.disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
