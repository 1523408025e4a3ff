"""A private RabbitMQ node; never the system's. Standard library only; no threads."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ops.local.processes import Process, StackFault, kill, spawn, tail, wait_until
from ops.local.server import (
    BREW_PREFIXES,
    LOOPBACK,
    Server,
    ServerTls,
    alive,
    identity_of,
    is_free,
    search_path,
    write_private,
)
from shared.events import CATALOGUE
from topology import definitions
from topology.users import Rights, rights

MAIN_VHOST = "ecom"  # not "/": clients disagree on how a URI spells it
RABBITMQ_BIN_VARIABLE = "ECOM_RABBITMQ_BIN"


def find_rabbitmq() -> Path | None:
    """The folder of rabbitmq-server and rabbitmqctl. Debian's wrappers in /usr/sbin do not count: they change users."""
    named = os.environ.get(RABBITMQ_BIN_VARIABLE)
    folders = [Path(named)] if named else [Path("/usr/lib/rabbitmq/bin")]
    if not named:
        folders += sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"))
        folders += [Path(prefix, kind) for prefix in BREW_PREFIXES for kind in ("sbin", "opt/rabbitmq/sbin")]
        on_path = shutil.which("rabbitmq-server")
        if on_path and Path(on_path).resolve().name != "rabbitmq-script-wrapper":
            folders.append(Path(on_path).parent)
    return next((folder for folder in folders if (folder / "rabbitmq-server").exists()), None)


def _rights() -> dict[str, Rights]:
    """The rights of the users beside the administrator."""
    return rights(CATALOGUE, with_shell=True)


def _find_epmd() -> Path:
    """Erlang's port mapper, which stands beside erl on some systems and on the PATH on others."""
    erl = shutil.which("erl", path=search_path())
    folders = [Path(erl).resolve().parent] if erl else []
    folders += [path.parent for folder in folders for path in folder.parent.glob("erts-*/bin/epmd")]
    folders += [Path("/usr/bin")]
    for folder in folders:
        if (folder / "epmd").exists():
            return folder / "epmd"
    raise StackFault("RabbitMQ is there but Erlang's epmd is not", exit_code=2)


class Broker(Server):
    """A RabbitMQ node with a port mapper, cookie, home and configuration of its own."""

    name = "broker"
    title = "RabbitMQ"
    stop_signal = signal.SIGTERM
    stop_patience_s = 30.0
    complaints = (r"(Failed to start TCP listener [^,\n]*)", r"ERROR: (.*)", r" - (Conf file .*)")
    node: ClassVar[str] = "ecom@localhost"
    user: ClassVar[str] = "ecom"

    @property
    def home(self) -> Path:
        """Configuration, cookie and data of the node."""
        return self.directory / self.name

    @property
    def tls_port(self) -> int:
        """Where clients connect by TLS, if it was prepared for that."""
        return int(self.facts["tls_port"])

    @property
    def amqp_uri(self) -> str:
        """The URI of the first vhost."""
        return self.amqp_uri_of(self.facts["vhosts"][0])

    def amqp_uri_of(self, vhost: str, user: str = "") -> str:
        """The URI of one vhost, for the administrator or another of the broker's users."""
        password = self.facts["passwords"][user] if user else self.facts["password"]
        return f"amqp://{user or self.user}:{password}@{LOOPBACK}:{self.port}/{vhost}"

    def make_passwords(self) -> None:
        """Choose a password for each user that has none."""
        self.facts.setdefault("password", secrets.token_hex(16))
        passwords = self.facts.setdefault("passwords", {})
        for name in _rights():
            passwords.setdefault(name, secrets.token_hex(16))

    def prepare(self, vhosts: Sequence[str] = (MAIN_VHOST,), tls: ServerTls | None = None) -> None:
        """Choose ports and passwords and write the node's configuration; `vhosts` exist once it is up.

        With `tls` it also listens on `tls_port`, for clients with a certificate of that CA.
        """
        if self.process:
            return
        self.make_passwords()
        self._move("port", "dist_port", "epmd_port", *(["tls_port"] if tls else []))
        self.keep(vhosts=list(vhosts))
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)  # what an earlier version wrote there may be readable by everybody
        (self.home / "conf.d").mkdir(exist_ok=True)
        (self.home / "enabled_plugins").write_text("[].\n")
        (self.home / "advanced.config").write_text("[].\n")
        cookie = self.home / ".erlang.cookie"
        if not cookie.exists():
            write_private(cookie, secrets.token_hex(20))
            cookie.chmod(0o400)  # Erlang refuses a cookie that others could read
        write_private(self.home / "definitions.json", json.dumps(self._definitions(vhosts)))
        (self.home / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = {LOOPBACK}:{self.port}\n"
            f"load_definitions = {self.home / 'definitions.json'}\n"
            # A developer's machine: neither half its memory nor its last 2 GB of disk belong to us.
            "vm_memory_high_watermark.absolute = 1GB\n"
            "disk_free_limit.absolute = 50MB\n"
            "log.file = false\n"
            "log.console = true\n"
            "log.console.level = info\n"
            "log.console.use_colors = off\n"  # it is read in files and under errors
            + (self._tls_configuration(tls) if tls else "")
        )

    def _tls_configuration(self, tls: ServerTls) -> str:
        return (
            f"listeners.ssl.local = {LOOPBACK}:{self.tls_port}\n"
            f"ssl_options.cacertfile = {tls.ca}\n"
            f"ssl_options.certfile = {tls.certificate}\n"
            f"ssl_options.keyfile = {tls.key}\n"
            "ssl_options.verify = verify_peer\n"
            "ssl_options.fail_if_no_peer_cert = true\n"
            "ssl_options.versions.1 = tlsv1.3\n"
            "ssl_options.versions.2 = tlsv1.2\n"
        )

    def launch(self, dies_with_us: bool = False) -> None:
        """Start the port mapper and the node without waiting for them."""
        binaries = find_rabbitmq()
        if binaries is None:
            raise StackFault("RabbitMQ is not installed", exit_code=2)
        if self.process:
            return
        tie = signal.SIGTERM if dies_with_us else None
        if not self._epmd():
            # In the foreground and as our child: the one that Erlang starts by itself is a daemon that outlives it.
            argv: list[str | Path] = [_find_epmd(), "-port", str(self.facts["epmd_port"]), "-address", LOOPBACK]
            mapper = spawn(argv, log=self.log, env=self._environment(), cwd=self.home, dies_with_us=tie)
            self._remember("epmd", mapper)
            if not wait_until(lambda: not is_free(self.facts["epmd_port"]), patience_s=10):
                raise StackFault(f"epmd does not start; log: {self.log}\n{tail(self.log)}")
        self._spawn([binaries / "rabbitmq-server"], dies_with_us)

    def answers(self) -> bool:
        """Whether it greets a client: the port opens last, when vhosts, users and queues are there."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=2) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                return client.recv(1) == b"\x01"  # a method frame: connection.start
        except OSError:
            return False

    def stop(self) -> None:
        """Shut the node down, then its port mapper."""
        super().stop()
        if mapper := self._epmd():
            mapper.end()

    def kill(self) -> None:
        """SIGKILL to the node and its port mapper."""
        super().kill()
        if mapper := self._epmd():
            kill([mapper])

    def remove(self) -> None:
        """Delete the data of a stopped node."""
        shutil.rmtree(self.home, ignore_errors=True)
        super().remove()

    def rabbitmqctl(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """What `rabbitmqctl ARGUMENTS` prints. Raises StackFault when it fails."""
        return self._tool("rabbitmqctl", arguments, timeout_s)

    def diagnostics(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """What `rabbitmq-diagnostics ARGUMENTS` prints. Raises StackFault when it fails."""
        return self._tool("rabbitmq-diagnostics", arguments, timeout_s)

    def _tool(self, tool: str, arguments: Sequence[str], timeout_s: float) -> str:
        binaries = find_rabbitmq()
        argv = [str(Path(binaries or "") / tool), "-q", "-n", self.node, *arguments]
        with tempfile.TemporaryFile() as output:  # a file, not pipes: those need threads or an unpatched select
            code = subprocess.call(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                cwd=self.home,
                timeout=timeout_s,
            )
            output.seek(0)
            text = output.read().decode("utf-8", "replace")
        if code:
            raise StackFault(f"{tool} {' '.join(arguments)}: {text.strip()}")
        return text

    def _epmd(self) -> Process | None:
        return alive(self.facts.get("epmd"))

    def _remember(self, role: str, child: subprocess.Popen[bytes]) -> None:
        self.keep(**{role: identity_of(child)})

    def _definitions(self, vhosts: Sequence[str]) -> dict[str, Any]:
        """Vhosts, users and permissions, loaded by the node while it starts: rabbitmqctl takes 2 s for each."""
        everything = Rights(configure=".*", write=".*", read=".*", topics={})
        found: dict[str, Any] = {
            "vhosts": [{"name": vhost} for vhost in vhosts],
            "users": [definitions.user(self.user, self.facts["password"], tags="administrator")],
            "permissions": [definitions.permission(self.user, vhost, everything) for vhost in vhosts],
        }
        for name, rows in definitions.definitions(vhosts[0], self.facts["passwords"], _rights()).items():
            found[name] = found.get(name, []) + rows
        return found

    def _environment(self) -> dict[str, str]:
        """Everything that could lead to the system's node is named here, so that nothing of it is read."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return ours | {
            "HOME": str(self.home),
            "PATH": search_path(),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self.facts["epmd_port"]),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_DIST_PORT": str(self.facts["dist_port"]),
            "RABBITMQ_MNESIA_BASE": str(self.home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.home),
            "RABBITMQ_SCHEMA_DIR": str(self.home / "schema"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.home / "generated"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.home / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "enabled_plugins"),
            # Two schedulers that do not spin: the machine has other things to do.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+S 2:2 +sbwt none -kernel inet_dist_use_interface {_ERL_LOOPBACK}",
            "RABBITMQ_CTL_ERL_ARGS": f"-kernel inet_dist_use_interface {_ERL_LOOPBACK}",
            # The script then becomes the node, where it would wait beside it as a shell: one pid, honest signals.
            "RUNNING_UNDER_SYSTEMD": "true",
        }


_ERL_LOOPBACK = "{127,0,0,1}"
