"""`make shell`: Nameko's own shell, on the broker of this environment.

It opens what `nameko shell --broker URI` opens, and keeps the URI's password out of the process list and the screen.
A script on standard input prints what it prints and nothing else, and ends at its first error: exit 1.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from shared.config import Settings, read
from shared.errors import EcomError

BANNER = """\
n.rpc.order_service.get_order("...")                calls a service, as the user `shell`
n.dispatch_event("ecom", "order.created", {...})    publishes an event
flow.stock("sku-1", 10)                             sets what is on hand, through the gateway
flow.order("sku-1", 2, payment="mock_declined")     runs an order to its end and prints its timeline
flow.cancel(order_id)                               cancels it, and prints its timeline
flow.dead("q.order.payment-result")                 makes a message that cannot succeed
README.md drives an order from here; Ctrl-D ends."""


def shown_flow(settings: Settings) -> Any:
    """The flow that tests use, which prints what it does."""
    from ops.cli.flow import Flow
    from ops.cli.timeline import console, print_timeline

    class ShownFlow(Flow):
        def order(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return self._shown(super().order(*args, **kwargs)["order_id"])

        def cancel(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return self._shown(super().cancel(*args, **kwargs)["order_id"])

        def dead(self, *args: Any, **kwargs: Any) -> str:
            message_id = super().dead(*args, **kwargs)
            print(f"dead soon: {message_id}; see `ecom dlq ls`")
            return message_id

        def _shown(self, order_id: str) -> dict[str, Any]:
            order = self.at_rest(order_id)
            print_timeline(console(), self.timeline(order_id), order["status"])
            return order

    return ShownFlow(f"http://{settings.host}:{settings.port('gateway')}", amqp_uri=settings.amqp_uri)


def main() -> int:
    """Run the shell until its input ends. 0 done, 1 a script failed, 3 there is no broker."""
    with warnings.catch_warnings():
        # Nameko's imports warn about pkg_resources and eventlet; a caller of services can do nothing about that.
        warnings.simplefilter("ignore")
        from nameko.cli.shell import ShellRunner, make_nameko_helper

        from shared.edge.broker import AMQPError

    try:
        settings = read()
        helper = make_nameko_helper({"AMQP_URI": settings.amqp_uri})
    except (OSError, AMQPError, EcomError) as error:
        print(f"ecom: no shell without a broker: {error}", file=sys.stderr)
        return 3
    interactive = sys.stdin.isatty()
    if not interactive:
        sys.ps1 = sys.ps2 = ""
    try:
        ShellRunner(BANNER if interactive else "", {"n": helper, "flow": shown_flow(settings)}).start_shell(name=None)
    except Exception:  # of a script; the shell has printed it already
        return 1
    finally:
        helper.disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
