"""Throw-away certificates for measurements over TLS, made with the `openssl` command."""

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1 with its key; each side trusts exactly this one (mutual authentication)."""

    certificate: Path
    key: Path

    def client_context(self) -> ssl.SSLContext:
        """For our own SCU."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.check_hostname = False
        context.load_cert_chain(self.certificate, self.key)
        return context


def make_certificate(folder: Path) -> Certificate | None:
    """A fresh certificate; None where there is no `openssl` command."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    made = Certificate(folder / "bench.crt", folder / "bench.key")
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", made.key, "-out", made.certificate]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    return made
