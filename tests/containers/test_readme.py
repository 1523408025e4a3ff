"""Every command of deploy/README.md, in its order, on a checkout as an operator has it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

import pytest
import requests

from ops.cli.flow import Flow
from tests.containers import readme
from tests.containers.customers import Customers
from tests.containers.engine import say
from tests.containers.site import Site, eventually
from topology.services import NAMES

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1200)]


class Page:
    """The scenes of the page, and what they keep for one another."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.paid = ""
        self.customers: Customers | None = None
        self.version = ""

    def play(self, step: readme.Step) -> None:
        """Run a command, or set a scene."""
        if step.scene:
            say(f"scene: {step.scene}")
            getattr(self, step.scene)()
        else:
            say(f"$ {step.command}")
            self.site.run(step.command, said=readme.said_to(step.command), codes=readme.codes_of(step.command))

    def an_order_is_paid(self) -> None:
        flow = self.site.flow()
        flow.stock("readme", 10)
        self.paid = flow.order("readme")["order_id"]
        assert flow.at_rest(self.paid)["status"] == "PAID"

    def two_of_order_and_payment(self) -> None:
        assert {name: len(self.site.containers(name)) for name in ("order", "payment", "auth")} == {
            "order": 2,
            "payment": 2,
            "auth": 1,
        }
        self.an_order_is_paid()

    def the_paid_order_is_still_there(self) -> None:
        assert self.site.flow().get(f"/api/orders/{self.paid}")["status"] == "PAID"

    def the_proxy_passes_everything_on(self) -> None:
        flow = self.site.flow(self.site.proxy_port)
        flow.stock("proxied", 1)
        events = f"/api/orders/{flow.order('proxied')['order_id']}/events"
        with flow.http.get(flow.url + events, headers=self.bearer(flow), stream=True, timeout=5) as stream:
            # It arrives although the answer goes on for minutes.
            assert stream.headers["Content-Type"].startswith("text/event-stream")
            assert any(line.startswith(b"data:") for line in stream.iter_lines(chunk_size=1))
        # Of a proxy in front of this one: the gateways believe what both say of the address that the client called.
        said = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example"}
        assert "api=https://shop.example " in flow.http.get(f"{flow.url}/docs", headers=said, timeout=30).text

    def bearer(self, flow: Flow) -> dict[str, str]:
        return {"Authorization": f"Bearer {flow.token('customer')}", "Accept": "text/event-stream"}

    def a_new_version(self) -> None:
        self.version = self.site.next_version()
        self.customers = Customers(self.site, self.site.proxy_port).__enter__()

    def every_container_is_of_the_new_version(self) -> None:
        assert self.customers is not None
        self.customers.__exit__()
        say(f"upgrade: {self.customers.summary()}")
        assert self.customers.repeats == {}
        for name in (*NAMES, "gateway2"):
            assert self.version in self.site.compose(f"exec -T {name} ecom --version"), name
        self.customers.check()

    def production_with_nothing_in_it(self) -> None:
        self.site.compose("down --volumes")
        self.site.set("ECOM_ENV", None)

    def ann_and_ben_may_sign_in(self) -> None:
        for user in ("ann", "ben"):
            answer = self.token(user)
            assert answer.status_code == 200, answer.text

    def ann_may_not_sign_in(self) -> None:
        assert self.token("ann").status_code == 401
        assert self.token("ben").status_code == 200

    def token(self, user: str, port: int | None = None) -> requests.Response:
        """Sign in at the gateway or at this port, by HTTPS once there is a CA."""
        ca = self.site.folder / "deploy/secrets/tls/ca/ca.crt"
        scheme = "https" if ca.exists() else "http"
        return requests.post(
            f"{scheme}://localhost:{port or self.site.port}/api/auth/token",
            json={"username": user, "password": readme.PASSWORD},
            verify=str(ca) if ca.exists() else None,
            timeout=30,
        )

    def nobody_is_heard_in_clear_text(self) -> None:
        for port in (self.site.port, self.site.proxy_port):
            assert self.token("ben", port).status_code == 200
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://localhost:{self.site.port}/healthz", timeout=10)
        in_clear_text = requests.get(f"http://localhost:{self.site.proxy_port}/healthz", timeout=10)
        assert in_clear_text.status_code == 400  # nginx says so to who forgot the s

    def the_administrator_is_new(self) -> None:
        (new,) = re.findall(r"change_password ecom (\w+)$", readme.page(), re.M)
        self.rewrite("amqp_uri", lambda uri: re.sub(r"://ecom:\w+@", f"://ecom:{new}@", uri))

    def order_has_new_passwords(self) -> None:
        for name in ("amqp_uri_order", "order_database_url"):
            self.rewrite(name, lambda uri: re.sub(r":\w{64}@", f":{secrets.token_hex(32)}@", uri))

    def order_is_ready(self) -> None:
        self.ready("order")

    def auth_has_another_key(self) -> None:
        self.rewrite("auth_keys", lambda keys: f"k2:{secrets.token_hex(32)},{keys.strip()}\n")

    def ready_again(self) -> None:
        self.ready("auth", "gateway")
        assert self.token("ben").status_code == 200

    def ready(self, *names: str) -> None:
        for name in names:
            eventually(lambda: self.site.health(name), lambda found: set(found) == {"healthy"}, 90)  # noqa: B023

    def rewrite(self, name: str, change: Callable[[str], str]) -> None:
        """Change a secret as a person would: the file stays, with its owner and mode."""
        path = self.site.folder / "deploy/secrets" / name
        before = path.read_text()
        path.write_text(change(before))
        assert path.read_text() != before


@pytest.fixture(scope="module")
def steps() -> list[readme.Step]:
    return readme.steps(readme.page())


def test_every_command_of_the_page_works(site: Site, steps: list[readme.Step]) -> None:
    page = Page(site)
    for step in steps:
        page.play(step)
    assert len([step for step in steps if step.command]) >= 30
