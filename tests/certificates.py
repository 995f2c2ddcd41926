"""A certificate authority of the tests' own, and a server certificate it signed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files: the authority, and the server's certificate and key."""

    ca: Path
    cert: Path
    key: Path


def issue(folder: Path, *names: str) -> Certificates:
    """Make an authority and a certificate for ``names`` (hosts or IP addresses) in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    authority = trustme.CA()
    leaf = authority.issue_cert(*names)
    authority.cert_pem.write_to_path(str(made.ca))
    leaf.private_key_pem.write_to_path(str(made.key))
    made.cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    return made
