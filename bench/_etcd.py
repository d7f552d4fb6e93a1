"""etcd as a peer: found on this machine, started with TLS on the disk that is measured, and asked through its HTTPS gateway.

Source: https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/, https://etcd.io/docs/v3.4/op-guide/security/
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import ssl
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from controller.trust.pki import Pki
from rkfleet.clock import SystemClock
from rkfleet.ports import free_port

__all__ = ["Etcd", "find_etcd", "put_request", "running_etcd"]

VARIABLE: Final = "RKFLEET_ETCD"
START_SECONDS_MAX: Final = 20.0
CLOCK: Final = SystemClock()


class Etcd(NamedTuple):
    """A running etcd: where it listens, how it is verified, and its client."""

    port: int
    tls: ssl.SSLContext
    ca_file: Path
    client: Path | None

    def check_perf(self, load: str) -> float:
        """Return writes per second of `etcdctl check perf`: etcd's own measurement by its own clients, one minute long."""
        assert self.client is not None
        done = subprocess.run(
            [self.client, f"--endpoints=https://127.0.0.1:{self.port}", f"--cacert={self.ca_file}", "check", "perf", f"--load={load}"],
            capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "ETCDCTL_API": "3"},
        )  # fmt: skip
        found = re.search(r"Throughput[^0-9]*(\d+)(?:\.\d+)? writes/s", done.stdout)
        if found is None:
            raise RuntimeError(f"etcdctl check perf said: {done.stdout}{done.stderr}")
        return float(found[1])

    def get(self, key: str) -> str | None:
        """Return a value."""
        body = msgspec.json.encode({"key": _text(key)})
        request = urllib.request.Request(f"https://127.0.0.1:{self.port}/v3/kv/range", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, context=self.tls) as answer:
            found: Any = msgspec.json.decode(answer.read())
        return base64.b64decode(found["kvs"][0]["value"]).decode() if found.get("kvs") else None


def find_etcd(given: Path | None) -> Path | None:
    """Return the etcd to measure: the given one, that of $RKFLEET_ETCD, or the one on PATH."""
    found = given or os.environ.get(VARIABLE) or shutil.which("etcd")
    return Path(found) if found else None


def put_request(key: str, value: bytes) -> tuple[str, bytes]:
    """Return path and body of a put."""
    return "/v3/kv/put", msgspec.json.encode({"key": _text(key), "value": base64.b64encode(value).decode()})


def _text(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@contextlib.contextmanager
def running_etcd(binary: Path, directory: Path) -> Iterator[Etcd]:
    """Run one member with TLS for its clients; its log is flushed before each answer, as ours is."""
    with tempfile.TemporaryDirectory(dir=directory) as data:
        pki = Pki.ensure(Path(data) / "pki", ["127.0.0.1"], CLOCK.now(), "bench")
        certificate, key = pki.server_files("controller")
        ca_file = Path(data) / "ca.crt"
        ca_file.write_text(pki.ca_pem("servers"))
        port, peer_port = free_port(), free_port()
        url, peer_url = f"https://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        command = [
            str(binary), f"--data-dir={data}/etcd", f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
            f"--cert-file={certificate}", f"--key-file={key}", f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}", f"--initial-cluster=default={peer_url}", "--log-level=error",
            "--quota-backend-bytes=8589934592",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = binary.with_name("etcdctl")
        etcd = Etcd(port, ssl.create_default_context(cafile=str(ca_file)), ca_file, client if client.exists() else None)
        try:
            _wait(etcd, process)
            yield etcd
        finally:
            process.terminate()
            process.wait()


def _wait(etcd: Etcd, process: subprocess.Popen[bytes]) -> None:
    deadline = CLOCK.monotonic() + START_SECONDS_MAX
    while True:
        try:
            etcd.get("nothing")
        except OSError:
            if process.poll() is not None or CLOCK.monotonic() > deadline:
                raise
        else:
            return
