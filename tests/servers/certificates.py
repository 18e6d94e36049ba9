"""An authority of one's own and a certificate it signed for 127.0.0.1, made anew for each session of tests."""

import subprocess
from pathlib import Path

from tests.servers.processes import need

NAMES = "subjectAltName=IP:127.0.0.1,DNS:localhost"


class Certificates:
    """Files in PEM: the authority's `ca`, and `cert` and `key` of a server. Another authority's do not verify."""

    def __init__(self, folder: Path) -> None:
        need("openssl")
        folder.mkdir(parents=True, exist_ok=True)
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        secret = folder / "ca-key.pem"
        fresh = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        extensions = ("-addext", NAMES, "-addext", "basicConstraints=critical,CA:FALSE")
        _openssl(*fresh, "-subj", "/CN=GoTask tests", "-keyout", f"{secret}", "-out", f"{self.ca}")
        signed = ("-CA", f"{self.ca}", "-CAkey", f"{secret}", *extensions)
        _openssl(*fresh, "-subj", "/CN=localhost", *signed, "-keyout", f"{self.key}", "-out", f"{self.cert}")


def _openssl(*words: str) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
