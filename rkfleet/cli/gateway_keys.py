"""`rkfleet gateway-keys`: what a gateway needs before it listens beyond loopback, and API keys for it and for boards.

In: the names that clients dial. Out: `tls.crt`, `tls.key` and `api-keys` in a directory, for `--tls-cert`, `--tls-key` and
`--api-key-file`. A fleet with a certificate of its own does not need it. The certificate signs itself: clients are given `tls.crt` to
trust, and it says nothing about boards or controllers, whose authorities stay with the controller.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["app"]

LIFETIME_DAYS: Final = 3650  # Its clients hold a copy of it, so that it is replaced by people and not by a date.

app = typer.Typer(help="Certificate and API keys of a gateway.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Certificate and API keys of a gateway."""


@app.command("create")
def create(
    directory: Annotated[Path, typer.Argument(help="Where tls.crt, tls.key and api-keys are written; files that are there are kept.")],
    name: Annotated[list[str], typer.Option(help="Host name or address that clients dial; may be repeated.")],
) -> None:
    """Make a certificate for clients to trust, and a first API key."""
    from rkfleet.api_keys import new_key
    from rkfleet.clock import SystemClock
    from rkfleet.disk import SystemDisk, write_durably
    from rkfleet.errors import Unavailable

    def write(target: Path, content: bytes) -> None:
        write_durably(target, content, target.with_name(f".{target.name}.partial"), SystemDisk())

    certificate, key, api_keys = (directory / file for file in ("tls.crt", "tls.key", "api-keys"))
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (certificate.exists() and key.exists()):
            made = _self_signed(name, SystemClock().now())
            write(key, made[1])
            write(certificate, made[0])
        if not api_keys.exists():
            write(api_keys, f"{new_key()}\n".encode())
    except OSError as error:
        raise Unavailable(f"{directory} cannot be written: {error.strerror}") from error
    print(f"--tls-cert {certificate} --tls-key {key} --api-key-file {api_keys}")


@app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="File of keys, for --api-key-file of a gateway or --api-keys-file of an agent.")],
    name: Annotated[str, typer.Option(help="Whom the key belongs to. Keys with one name are one tenant.")],
) -> None:
    """Make an API key: its hash goes to the file, the key itself is printed once."""
    from rkfleet.api_keys import key_line, new_key
    from rkfleet.disk import SystemDisk, write_durably
    from rkfleet.errors import Unavailable

    key = new_key()
    try:
        before = file.read_bytes() if file.exists() else b""
        ended = before if not before or before.endswith(b"\n") else before + b"\n"
        write_durably(file, ended + key_line(name, key).encode(), file.with_name(f".{file.name}.partial"), SystemDisk())
    except OSError as error:
        raise Unavailable(f"{file} cannot be written: {error.strerror}") from error
    print(key)


def _self_signed(names: list[str], now: datetime) -> tuple[bytes, bytes]:
    """Return a certificate for these names and its key, PEM."""
    import ipaddress
    from datetime import timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def general(name: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            return x509.DNSName(name)

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])  # RFC 5280 ub-common-name
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # Clients whose clock is a little behind
        .not_valid_after(now + timedelta(days=LIFETIME_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([general(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem), private
