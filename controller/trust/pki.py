"""The fleet's certificate authorities, and every certificate that they issue.

In: a directory, the addresses that servers answer at, certificate requests. Out: PEM. Called by `app.py` (once, at start), by the enrolment
routes, and by `sessions/` to read the certificate of a caller. It is the only module of the controller that reads or makes X.509.

There is one issuing CA per class of caller: *servers* (controller, registry, serving listeners of boards), *boards* (the session) and
*gateways* (serving listeners). Each port trusts exactly one, so TLS itself tells a gateway from a board. All keys are P-256.

notBefore of every certificate is `NOT_BEFORE`, because a board without a battery starts its clock there and must trust its controller
before it knows the time. Certificates of boards and gateways end 90 days after issue by the controller's clock, and only that clock judges
them. The session listener shows a certificate that ends with its CA: gRPC has a board judge it by the board's own clock, which may be years
ahead.

Sources: RFC 5280 (profile; 4.2.1.2 for key identifiers), RFC 7469 section 2.4 (a pin is the SHA-256 of the SubjectPublicKeyInfo).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.trust.files import make_private_directory, write_private
from rkfleet.enrolment import server_name, serving_name
from rkfleet.errors import BadRequest, FailedPrecondition, Unauthenticated

__all__ = ["MEMBER_LIFETIME", "NOT_BEFORE", "BoardCertificates", "Peer", "Pki", "PublicKey", "certificate_end", "read_peer", "read_request"]

NOT_BEFORE: Final = datetime(1970, 1, 1, tzinfo=UTC)
CA_YEARS: Final = 30  # A CA is replaced by people, not by a date: its key hash stands in join commands.
MEMBER_LIFETIME: Final = timedelta(days=90)  # Of boards and gateways, which renew them from day 60 on by the known key.
SERVER_LIFETIME: Final = timedelta(days=365)
RENEW_BEFORE: Final = timedelta(days=180)  # Server certificates are made anew in the second half of their life.
REQUEST_LENGTH_MAX: Final = 8192  # A P-256 request is 500 bytes.

Class = Literal["servers", "boards", "gateways"]
_CLASSES: Final[tuple[Class, ...]] = ("servers", "boards", "gateways")


class Peer(NamedTuple):
    """Whom a certificate names: `rkfleet://<fleet_id>/<class>/<name>`; `key_sha256` is the hex hash of its public key."""

    fleet_id: str
    class_: str
    name: str
    key_sha256: str


class BoardCertificates(NamedTuple):
    """What a board gets: PEM for the session, and PEM for its serving listener, both over the same key."""

    client: str
    serving: str


class PublicKey(NamedTuple):
    """The key of a verified certificate request, with the hex SHA-256 of its SubjectPublicKeyInfo."""

    key: ec.EllipticCurvePublicKey
    sha256: str

    def has_signed(self, statement: bytes, signature: bytes) -> bool:
        """Return whether this is the key's signature over the statement: ECDSA with SHA-256."""
        try:
            self.key.verify(signature, statement, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class _Authority(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class _Fleet(msgspec.Struct, rename="camel"):
    fleet_id: str


class Pki:
    """The authorities of one fleet, loaded from their directory.

    Attributes:
        fleet_id: Identity of the fleet; part of every name that is issued.
        directory: Where the files are: `<class>-ca.{crt,key}`, `controller.{crt,key}`, `registry.{crt,key}`,
            `registry-signing.{key,pub}` (Ed25519), `fleet.json`.
    """

    def __init__(self, directory: Path, fleet_id: str, authorities: dict[Class, _Authority]) -> None:
        self.directory: Final = directory
        self.fleet_id: Final = fleet_id
        self._authorities: Final = authorities

    @classmethod
    def ensure(cls, directory: Path, hosts: Sequence[str], now: datetime, new_fleet_id: str, *, registry_hosts: Sequence[str] = ()) -> Pki:
        """Load the authorities, making what is missing, and renew server certificates that are old or lack one of their names.

        Args:
            directory: Made with mode 0700 when missing.
            hosts: Names and addresses that the controller is reached at, and the registry unless it has its own.
            now: Wall time.
            new_fleet_id: Identity for a fleet that has none yet; a label of letters, digits and dashes.
            registry_hosts: Names and addresses that the registry is reached at, when it is on a machine of its own.

        Raises:
            FailedPrecondition: A file is there and cannot be read.
            Unavailable: A file cannot be written.
        """
        make_private_directory(directory)
        fleet_id = _ensure_fleet_id(directory / "fleet.json", new_fleet_id)
        authorities = {one: _ensure_authority(directory, one, fleet_id, now) for one in _CLASSES}
        pki = cls(directory, fleet_id, authorities)
        pki._ensure_server("controller", hosts, now)
        pki._ensure_server("registry", registry_hosts or hosts, now)
        _ensure_signing_key(directory)
        return pki

    @property
    def ca_pin(self) -> str:
        """What join commands carry: `sha256:` and the hex hash of the servers CA's public key."""
        return f"sha256:{_key_sha256(self._authorities['servers'].key.public_key())}"

    @property
    def fingerprint(self) -> str:
        """The fleet and its keys in one word: controllers that share a database must have the same."""
        keys = [_key_sha256(self._authorities[one].key.public_key()) for one in _CLASSES]
        keys.append(hashlib.sha256((self.directory / "registry-signing.pub").read_bytes()).hexdigest())
        return f"{self.fleet_id} {hashlib.sha256(' '.join(keys).encode()).hexdigest()[:32]}"

    def ca_pem(self, class_: Class) -> str:
        """Return the CA certificate of a class."""
        return _pem(self._authorities[class_].certificate)

    def server_files(self, server: Literal["controller", "registry"]) -> tuple[Path, Path]:
        """Return the certificate file and the key file of a server."""
        return self.directory / f"{server}.crt", self.directory / f"{server}.key"

    def copy_registry_files(self, directory: Path) -> None:
        """Write what a registry needs to a directory of its own, so that it sees no authority and no key that signs.

        Raises:
            Unavailable: A file cannot be written.
        """
        make_private_directory(directory)
        for file in (*self.server_files("registry"), self.directory / "registry-signing.pub"):
            target, content = directory / file.name, file.read_bytes()
            if not target.exists() or target.read_bytes() != content:
                write_private(target, content)

    def session_pem(self) -> bytes:
        """Return a certificate of the session listener over the controller's key, for its own name, which ends with the CA."""
        authority = self._authorities["servers"]
        key = _ensure_key(self.server_files("controller")[1])
        names, until = [x509.DNSName(server_name("controller", self.fleet_id))], authority.certificate.not_valid_after_utc
        made = _issue(authority, key.public_key(), "controller", names, usage=ExtendedKeyUsageOID.SERVER_AUTH, until=until)
        return _pem(made).encode()

    def issued_to(self, class_: Class, certificate_pem: bytes) -> Peer:
        """Return whom a certificate names that a CA of this fleet has issued, also if it has ended.

        Raises:
            Unauthenticated: It names nobody, or was not issued by the CA of this class.
        """
        peer = read_peer(certificate_pem)
        try:
            x509.load_pem_x509_certificate(certificate_pem).verify_directly_issued_by(self._authorities[class_].certificate)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise Unauthenticated(
                f"the certificate of {peer.class_}/{peer.name} was not issued by the {class_} CA of this fleet"
            ) from error
        return peer

    def issue_board(self, name: str, key: PublicKey, now: datetime) -> BoardCertificates:
        """Return the certificates of a board over the key of its request; the names in a request are not looked at."""
        uri = x509.UniformResourceIdentifier(f"rkfleet://{self.fleet_id}/boards/{name}")
        serving = x509.DNSName(serving_name(name, self.fleet_id))
        return BoardCertificates(
            client=_pem(
                _issue(
                    self._authorities["boards"], key.key, name, [uri], usage=ExtendedKeyUsageOID.CLIENT_AUTH, until=now + MEMBER_LIFETIME
                )
            ),
            serving=_pem(
                _issue(
                    self._authorities["servers"],
                    key.key,
                    name,
                    [serving],
                    usage=ExtendedKeyUsageOID.SERVER_AUTH,
                    until=now + MEMBER_LIFETIME,
                )
            ),
        )

    def issue_gateway(self, name: str, key: PublicKey, now: datetime) -> str:
        """Return the certificate by which a gateway proves itself to boards."""
        uri = x509.UniformResourceIdentifier(f"rkfleet://{self.fleet_id}/gateways/{name}")
        return _pem(
            _issue(self._authorities["gateways"], key.key, name, [uri], usage=ExtendedKeyUsageOID.CLIENT_AUTH, until=now + MEMBER_LIFETIME)
        )

    def _ensure_server(self, server: Literal["controller", "registry"], hosts: Sequence[str], now: datetime) -> None:
        certificate_file, key_file = self.server_files(server)
        names = _host_names((*hosts, "localhost", "127.0.0.1", "::1", server_name(server, self.fleet_id)))
        key = _ensure_key(key_file)
        if certificate_file.exists():
            found = _load_certificate(certificate_file)
            fresh = found.not_valid_after_utc - now > RENEW_BEFORE
            if fresh and set(_alternative_names(found)) >= set(names) and found.issuer == self._authorities["servers"].certificate.subject:
                return
        made = _issue(
            self._authorities["servers"],
            key.public_key(),
            server,
            names,
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            until=now + SERVER_LIFETIME,
        )
        write_private(certificate_file, _pem(made).encode())


def certificate_end(path: Path) -> datetime:
    """Return when the certificate in a file ends.

    Raises:
        FailedPrecondition: It cannot be read.
    """
    return _load_certificate(path).not_valid_after_utc


def read_request(csr_pem: str) -> PublicKey:
    """Verify a certificate request and return its key; possession of the key is proved by the request's own signature.

    Raises:
        BadRequest: It is no request, its signature is wrong, or its key is not P-256.
    """
    if len(csr_pem) > REQUEST_LENGTH_MAX:
        raise BadRequest(f"csrPem has {len(csr_pem)} characters, at most {REQUEST_LENGTH_MAX} are allowed")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BadRequest(f"csrPem cannot be read as a PEM certificate request: {error}") from error
    if not valid:
        raise BadRequest("the signature of csrPem is wrong: the request was not made with its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadRequest("csrPem must be a request for a P-256 key")
    return PublicKey(key, _key_sha256(key))


def read_peer(certificate_pem: bytes) -> Peer:
    """Return whom a caller's certificate names; TLS has verified the certificate.

    Raises:
        Unauthenticated: It names nobody of a fleet.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        uris = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
            x509.UniformResourceIdentifier
        )
        key = certificate.public_key()
    except (ValueError, x509.ExtensionNotFound) as error:
        raise Unauthenticated(f"the caller's certificate names nobody: {error}") from error
    for uri in uris:
        scheme, _, rest = uri.partition("://")
        parts = rest.split("/")
        if scheme == "rkfleet" and len(parts) == 3 and all(parts):
            return Peer(parts[0], parts[1], parts[2], _key_sha256(key))
    raise Unauthenticated("the caller's certificate has no rkfleet:// name")


def _ensure_fleet_id(path: Path, new_fleet_id: str) -> str:
    if not path.exists():
        write_private(path, msgspec.json.encode(_Fleet(fleet_id=new_fleet_id)))
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Fleet).fleet_id
    except (OSError, msgspec.MsgspecError) as error:
        raise FailedPrecondition(f"{path} cannot be read: {error}") from error


def _ensure_authority(directory: Path, class_: Class, fleet_id: str, now: datetime) -> _Authority:
    key = _ensure_key(directory / f"{class_}-ca.key")
    path = directory / f"{class_}-ca.crt"
    if not path.exists():
        write_private(path, _pem(_self_signed(key, f"rkfleet {fleet_id} {class_} CA", now)).encode())
    certificate = _load_certificate(path)
    if certificate.public_key() != key.public_key():
        raise FailedPrecondition(f"{path} is not the certificate of {class_}-ca.key; restore both from the same backup")
    return _Authority(certificate, key)


def _ensure_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        write_private(path, _private_pem(ec.generate_private_key(ec.SECP256R1())))
    key = _load_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FailedPrecondition(f"{path} must hold a P-256 key")
    return key


def _load_key(path: Path) -> object:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise FailedPrecondition(f"{path} cannot be read as a private key: {error}") from error


def _ensure_signing_key(directory: Path) -> None:
    """Make the key that signs pull tokens; the registry reads the public half only."""
    private_file, public_file = directory / "registry-signing.key", directory / "registry-signing.pub"
    if not private_file.exists():
        write_private(private_file, _private_pem(ed25519.Ed25519PrivateKey.generate()))
    if not public_file.exists():
        key = _load_key(private_file)
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise FailedPrecondition(f"{private_file} must hold an Ed25519 key")
        write_private(
            public_file, key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )


def _self_signed(key: ec.EllipticCurvePrivateKey, name: str, now: datetime) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    subject = _name(name)
    return (
        _builder(subject, subject, key.public_key(), now + timedelta(days=365 * CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _issue(
    authority: _Authority,
    key: ec.EllipticCurvePublicKey,
    name: str,
    names: Sequence[x509.GeneralName],
    *,
    usage: x509.ObjectIdentifier,
    until: datetime,
) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return (
        _builder(_name(name), authority.certificate.subject, key, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, not_after: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])  # RFC 5280 ub-common-name


def _host_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"{path} cannot be read as a certificate: {error}") from error


def _key_sha256(key: object) -> str:
    assert hasattr(key, "public_bytes")
    der: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
