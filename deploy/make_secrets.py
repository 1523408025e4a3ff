"""Makes the passwords and keys that docker-compose.yml mounts: `python3 deploy/make_secrets.py [FOLDER]`.

Files that are there stay as they are, so it may run again. Secrets that speak of the same password are made together.
Standard library only.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

# Python puts the folder of this file first; the table of services is one folder up.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from topology.services import DATABASES  # noqa: E402

FOLDER = Path(__file__).resolve().parent / "secrets"

# The files are bind-mounted with the mode they have here, and the containers' users are not this one: each must read
# its own. That nobody else on this machine does is the folder's doing.
FOLDER_MODE = 0o700
FILE_MODE = 0o644


class HalfThere(Exception):
    """Some files of a group are there and others are not: no new password would fit both."""


def groups() -> list[dict[str, str]]:
    """New secrets by file name; the files of a group fit each other and nothing else."""
    broker, database, key, audit = (secrets.token_hex(32) for _ in range(4))
    return [
        {
            "amqp_uri": f"amqp://ecom:{broker}@rabbitmq:5672/ecom",
            # The broker makes user and vhost when it first starts, and no guest.
            "rabbitmq.conf": f"default_vhost = ecom\ndefault_user = ecom\ndefault_pass = {broker}",
        },
        {
            "postgres_password": database,
            "database_admin_url": f"postgresql://postgres:{database}@postgres:5432/postgres",
        },
        *(
            {f"{name}_database_url": f"postgresql://{name}_app:{secrets.token_hex(32)}@postgres:5432/{name}"}
            for name in DATABASES
        ),
        {"reader_password": secrets.token_hex(32)},
        {"auth_keys": f"k1:{key}"},
        {"audit_key": audit},
    ]


def make(folder: Path) -> list[str]:
    """Write what is missing; the names of the files written. Raises HalfThere, having written nothing."""
    missing: dict[str, str] = {}
    for group in groups():
        there = [name for name in group if (folder / name).exists()]
        if there and len(there) < len(group):
            absent = ", ".join(sorted(set(group) - set(there)))
            raise HalfThere(f"{folder}: there is {', '.join(there)} but not {absent}: they hold the same password")
        missing |= {} if there else group
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(FOLDER_MODE)
    for name, text in missing.items():
        with open(folder / name, "x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(text + "\n")
    return sorted(missing)


def main() -> int:
    """The exit code: 0 done, 1 refused."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else FOLDER
    try:
        written = make(folder)
    except HalfThere as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{folder}: {', '.join(written) if written else 'everything is there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
