"""`make shell`: Nameko's own shell, on the broker of this environment.

It opens what `nameko shell --broker URI` opens, and keeps the URI's password out of the process list and the screen.
Standard input that is no terminal is one script, as Python would run it: it prints what it prints and nothing else,
and an exception ends it with a traceback and exit code 1.
"""

from __future__ import annotations

import linecache
import ssl
import sys
import traceback
import warnings
from collections.abc import Mapping
from typing import Any

from ops.closed_pipes import outlive_readers
from shared.config import Settings
from shared.errors import EcomError
from shared.unsafe import read_safe
from topology import broker_uri
from topology.users import SHELL

BANNER = """\
n.rpc.order_service.get_order("...")                calls a service, as the user `shell`
n.dispatch_event("ecom", "order.created", {...})    publishes an event
flow.stock("sku-1", 10, price=1999)                 puts a sku on the menu and sets what is on hand, by HTTP
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

    return ShownFlow(f"http://{settings.address('gateway')}", amqp_uri=settings.amqp_uri_of("ops"))


def nameko_config(amqp_uri: str) -> dict[str, Any]:
    """What Nameko needs to connect. kombu takes the files of TLS apart from the URI. Raises ConfigurationFault."""
    address = broker_uri.parse(amqp_uri)
    if address.tls is None:
        return {"AMQP_URI": amqp_uri}
    options = {
        "server_hostname": address.host,
        "ca_certs": address.tls.ca or None,
        "certfile": address.tls.certificate or None,
        "keyfile": address.tls.key or None,
        "tls_minimum_version": ssl.TLSVersion.TLSv1_2,
    }
    return {"AMQP_URI": amqp_uri.partition("?")[0], "AMQP_SSL": options}


def run_script(source: bytes, names: Mapping[str, Any]) -> int:
    """Compile and execute a whole script. 0 if it ended well, 1 if it raised, which is shown on standard error."""
    place = "<stdin>"
    lines = source.decode(errors="replace").splitlines(keepends=True)
    linecache.cache[place] = (len(source), None, lines, place)  # so that a traceback shows the script's lines
    try:
        exec(compile(source, place, "exec", dont_inherit=True), {"__name__": "__main__", **names})
    except Exception as error:
        above = error.__traceback__.tb_next if error.__traceback__ else None  # without this function
        traceback.print_exception(error.with_traceback(above))
        return 1
    return 0


def main() -> int:
    """Run a script or the shell until its input ends. 0 done, 1 the script failed, 3 there is no broker."""
    outlive_readers()
    with warnings.catch_warnings():
        # Nameko's imports warn about pkg_resources and eventlet; a caller of services can do nothing about that.
        warnings.simplefilter("ignore")
        from nameko.cli.shell import ShellRunner, make_nameko_helper

        from shared.edge.broker import AMQPError

    try:
        settings = read_safe(SHELL)
        helper = make_nameko_helper(nameko_config(settings.amqp_uri_of(SHELL)))
    except (OSError, AMQPError, EcomError) as error:
        print(f"ecom: no shell without a broker: {error}", file=sys.stderr)
        return 3
    names = {"n": helper, "flow": shown_flow(settings)}
    try:
        if not sys.stdin.isatty():
            return run_script(sys.stdin.buffer.read(), names)
        ShellRunner(BANNER, names).start_shell(name=None)
    finally:
        helper.disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
