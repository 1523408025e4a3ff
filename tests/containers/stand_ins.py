"""Images of Debian 13 in place of those that no registry gives.

    python:3.13-slim           python3.13 of Debian, as /usr/local/bin/python
    postgres:17                postgresql-17 of Debian, with an entrypoint that reads the same variables
    rabbitmq:4.2-management    rabbitmq-server 4.0 of Debian, with the management plugin
    nginx:1.28                 nginx 1.26 of Debian

Each has the user, the folders and the command of the image it stands for, so that docker-compose.yml runs as it is.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ops.local.processes import tie
from tests.containers.engine import SUITE, Engine, debian_mirror, say

FILES = Path(__file__).resolve().parent / "stand_ins"
# mmdebstrap leaves them out, as the images of Debian do.
UNREAD = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
CLEAN = 'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*; find "$1/var/log" -type f -delete'
PYTHON = "python:3.13-slim"


@dataclass(frozen=True)
class StandIn:
    """One image: Debian's packages, what is changed in their files, and what the image says of itself."""

    image: str
    packages: tuple[str, ...]
    changes: tuple[str, ...]  # shell; $1 is the root of the image, $FILES the folder stand_ins
    says: tuple[str, ...]  # instructions of a Dockerfile

    @property
    def bare(self) -> str:
        """The image of its files alone, named for what they are made of."""
        made_of = [*self.packages, *self.changes, *(path.read_text() for path in sorted(FILES.iterdir()))]
        return f"stand-in:{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}"


def _as_user_999(name: str, home: str) -> str:
    return f'chroot "$1" sh -c "usermod -u 999 {name} && groupmod -g 999 {name} && chown -R 999:999 {home}"'


STAND_INS = (
    StandIn(
        PYTHON,
        ("python3", "python3-venv", "ca-certificates"),
        ('ln -s /usr/bin/python3 "$1/usr/local/bin/python"',),
        ('CMD ["python"]',),
    ),
    StandIn(
        "postgres:17",
        ("postgresql-17",),
        (
            'install -m 755 "$FILES/postgres-entrypoint" "$1/usr/local/bin/docker-entrypoint"',
            'rm -rf "$1/var/lib/postgresql" && install -d "$1/var/lib/postgresql/data"',
            'install -d "$1/run/postgresql"',
            _as_user_999("postgres", "/var/lib/postgresql /run/postgresql"),
            'chmod 3777 "$1/run/postgresql"',
        ),
        (
            "ENV PATH=/usr/lib/postgresql/17/bin:/usr/local/bin:/usr/bin:/bin",
            "ENV PGDATA=/var/lib/postgresql/data",
            "ENV LANG=C.UTF-8",
            "VOLUME /var/lib/postgresql/data",
            'ENTRYPOINT ["docker-entrypoint"]',
            'CMD ["postgres"]',
            "STOPSIGNAL SIGINT",
        ),
    ),
    StandIn(
        "rabbitmq:4.2-management",
        ("rabbitmq-server",),
        (
            'install -D -m 644 "$FILES/rabbitmq.conf" "$1/etc/rabbitmq/conf.d/10-defaults.conf"',
            'echo "[rabbitmq_management,rabbitmq_prometheus]." > "$1/etc/rabbitmq/enabled_plugins"',
            'rm -rf "$1/var/lib/rabbitmq" && install -d "$1/var/lib/rabbitmq"',
            _as_user_999("rabbitmq", "/var/lib/rabbitmq /var/log/rabbitmq"),
            'chmod 1777 "$1/var/lib/rabbitmq" "$1/var/log/rabbitmq"',
        ),
        (
            "ENV PATH=/usr/lib/rabbitmq/bin:/usr/local/bin:/usr/bin:/bin",
            "ENV HOME=/var/lib/rabbitmq",
            "ENV LANG=C.UTF-8",
            "VOLUME /var/lib/rabbitmq",
            'CMD ["rabbitmq-server"]',
        ),
    ),
    StandIn(
        "nginx:1.28",
        ("nginx",),
        (),
        ("ENV PATH=/usr/sbin:/usr/local/bin:/usr/bin:/bin", "STOPSIGNAL SIGQUIT"),
    ),
)


def make_missing(engine: Engine, index: str | None) -> list[str]:
    """Make those images that are not here and that no registry gives; the names of the stand-ins in use.

    Builds on that of python install from this index; None is that of pip.
    """
    used = []
    for one in STAND_INS:
        if not engine.works("image", "inspect", one.bare):
            is_real = engine.works("image", "inspect", one.image) and not _stands_in(engine, one.image)
            if is_real or engine.works("pull", "--quiet", one.image):
                continue
            say(f"no registry gives {one.image}: {one.packages[0]} of Debian 13 stands in for it")
            _import(engine, one)
        says = [f"FROM {one.bare}", *one.says, "LABEL standin=yes"]
        if one.image == PYTHON and index:
            host = index.split("/")[2].rpartition(":")[0]
            says.append(f"ENV PIP_INDEX_URL={index} PIP_TRUSTED_HOST={host}")
        engine.run("build", "--quiet", "--tag", one.image, "-", said="\n".join(says))
        used.append(one.image)
    return used


def _stands_in(engine: Engine, image: str) -> bool:
    return engine.run("image", "inspect", "--format", "{{.Config.Labels.standin}}", image).strip() == "yes"


def _import(engine: Engine, one: StandIn) -> None:
    """Its files, without what the image says of itself. Raises OSError."""
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(one.packages)}"]
    command += ["--skip=cleanup/run"]  # runc gives a folder in memory the mode of the image's folder at a restart
    command += ["--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude={path}" for path in UNREAD)]
    command += [f"--customize-hook={change}" for change in (*one.changes, CLEAN)]
    environment = engine.environment | {"FILES": str(FILES)}
    with subprocess.Popen(
        [*command, SUITE, "-", debian_mirror()], stdout=subprocess.PIPE, env=environment, preexec_fn=tie(signal.SIGTERM)
    ) as tree:
        subprocess.run(
            ["docker", "import", "-", one.bare], stdin=tree.stdout, env=environment, check=True, capture_output=True
        )
    if tree.returncode:
        engine.run("image", "rm", one.bare)
        raise OSError(f"mmdebstrap could not make {one.image}: exit {tree.returncode}")
