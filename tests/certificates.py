"""Certification authorities of tests, and the certificates that they issue: good ones, and bad ones to be refused."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

import trustme

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """The files of a certificate."""

    certificate: Path
    key: Path

    def replace(self, new: Issued) -> None:
        """Put a new pair into the place of this one, as a renewal does: each file at once, key first."""
        for target, source in ((self.key, new.key), (self.certificate, new.certificate)):
            fresh = target.with_suffix(".new")
            fresh.write_bytes(source.read_bytes())
            fresh.chmod(source.stat().st_mode & 0o777)
            owner = target.stat()
            os.chown(fresh, owner.st_uid, owner.st_gid)
            os.replace(fresh, target)


class Authority:
    """A CA with its certificate in `folder/NAME.crt`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder, self.name = folder, name
        folder.mkdir(parents=True, exist_ok=True)
        self._ca = trustme.CA(organization_name=name)
        self.file = folder / f"{name}.crt"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str, *hosts: str, expired: bool = False) -> Issued:
        """A certificate for a client or server of this name, which is reached under these hosts."""
        now = datetime.datetime.now(datetime.UTC)
        times = {"not_before": now - 2 * DAY, "not_after": now - DAY} if expired else {}
        made = self._ca.issue_cert(*(hosts or (name,)), common_name=name, **times)
        stem = f"{self.name}-{name}{'-expired' if expired else ''}"
        issued = Issued(self.folder / f"{stem}.crt", self.folder / f"{stem}.key")
        made.cert_chain_pems[0].write_to_path(issued.certificate)
        made.private_key_pem.write_to_path(issued.key)
        issued.key.chmod(0o600)
        return issued
