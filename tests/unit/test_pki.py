"""Certificate authorities: what they issue, whom it names, and what is made anew at a start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from controller.trust.pki import MEMBER_LIFETIME, NOT_BEFORE, Pki, certificate_end, read_peer, read_request
from rkfleet.enrolment import serving_name
from rkfleet.errors import BadRequest, FailedPrecondition, Unauthenticated
from tests.support.sessions import make_key

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def make_pki(directory: Path, hosts: tuple[str, ...] = ("10.0.0.5", "fleet.example"), now: datetime = NOW) -> Pki:
    return Pki.ensure(directory / "pki", hosts, now, "f-1")


def verify_server(pki: Pki, certificate: x509.Certificate, name: x509.GeneralName, moment: datetime) -> None:
    trusted = Store([x509.load_pem_x509_certificate(pki.ca_pem("servers").encode())])
    PolicyBuilder().store(trusted).time(moment).build_server_verifier(name).verify(certificate, [])  # type: ignore[arg-type]


def test_a_board_whose_clock_stands_at_1970_can_verify_the_controller(tmp_path: Path) -> None:
    """Boards boot without a clock; the controller's certificate and its CA hold from the first second on."""
    pki = make_pki(tmp_path)
    certificate = x509.load_pem_x509_certificate(pki.server_files("controller")[0].read_bytes())
    for moment in (NOT_BEFORE + timedelta(seconds=20), NOW, NOW + timedelta(days=364)):
        verify_server(pki, certificate, x509.DNSName("fleet.example"), moment)
        verify_server(pki, certificate, x509.DNSName("controller.f-1"), moment)
    with pytest.raises(VerificationError):
        verify_server(pki, certificate, x509.DNSName("fleet.example"), NOW + timedelta(days=366))


def test_a_board_certificate_names_the_board_and_its_key_and_lasts_ninety_days(tmp_path: Path) -> None:
    """The session learns name, fleet and key from the certificate alone."""
    pki, (_, key) = make_pki(tmp_path), make_key()
    made = pki.issue_board("rk3588-1", key, NOW)
    peer = read_peer(made.client.encode())
    assert (peer.fleet_id, peer.class_, peer.name, peer.key_sha256) == ("f-1", "boards", "rk3588-1", key.sha256)
    certificate = x509.load_pem_x509_certificate(made.client.encode())
    assert certificate.not_valid_before_utc == NOT_BEFORE
    assert certificate.not_valid_after_utc == NOW + MEMBER_LIFETIME == NOW + timedelta(days=90)


def test_a_board_whose_clock_is_years_ahead_can_verify_the_session_listener(tmp_path: Path) -> None:
    """gRPC looks at dates by the board's clock, so the certificate that it is shown ends with the CA; it is good for nothing else."""
    pki = make_pki(tmp_path)
    certificate = x509.load_pem_x509_certificate(pki.session_pem())
    for moment in (NOT_BEFORE + timedelta(seconds=20), NOW, NOW + timedelta(days=365 * 20)):
        verify_server(pki, certificate, x509.DNSName("controller.f-1"), moment)
    with pytest.raises(VerificationError):
        verify_server(pki, certificate, x509.DNSName("fleet.example"), NOW)
    key = serialization.load_pem_private_key(pki.server_files("controller")[1].read_bytes(), None)
    assert certificate.public_key() == key.public_key()
    assert certificate_end(pki.server_files("controller")[0]) == NOW + timedelta(days=365)


def test_who_a_certificate_was_issued_to_is_told_after_its_end_and_only_by_its_own_authority(tmp_path: Path) -> None:
    """A gateway that was away for long is recognised; a certificate of another class or fleet is not."""
    pki, (_, key) = make_pki(tmp_path), make_key()
    ended = pki.issue_gateway("gw", key, NOW - timedelta(days=365)).encode()
    assert pki.issued_to("gateways", ended).name == "gw"
    for wrong in (pki.issue_board("gw", key, NOW).client.encode(), make_pki(tmp_path / "other").issue_gateway("gw", key, NOW).encode()):
        with pytest.raises(Unauthenticated, match="was not issued by the gateways CA of this fleet"):
            pki.issued_to("gateways", wrong)


def test_a_serving_certificate_is_good_for_the_board_name_and_for_no_other(tmp_path: Path) -> None:
    """Callers dial the board's address and verify `<board>.boards.<fleet>`; the certificate cannot pose as the controller."""
    pki, (_, key) = make_pki(tmp_path), make_key()
    certificate = x509.load_pem_x509_certificate(pki.issue_board("rk3588-1", key, NOW).serving.encode())
    verify_server(pki, certificate, x509.DNSName(serving_name("rk3588-1", "f-1")), NOW)
    for other in ("rk3588-2.boards.f-1", "controller.f-1", "fleet.example"):
        with pytest.raises(VerificationError):
            verify_server(pki, certificate, x509.DNSName(other), NOW)


def test_each_class_of_caller_has_its_own_ca(tmp_path: Path) -> None:
    """A port that trusts the boards' CA lets no gateway in, and the other way round."""
    pki, (_, key) = make_pki(tmp_path), make_key()
    gateway = x509.load_pem_x509_certificate(pki.issue_gateway("gw", key, NOW).encode())
    board = x509.load_pem_x509_certificate(pki.issue_board("b", key, NOW).client.encode())
    assert read_peer(pki.issue_gateway("gw", key, NOW).encode()).class_ == "gateways"
    for certificate, own, other in ((gateway, "gateways", "boards"), (board, "boards", "gateways")):
        ours = x509.load_pem_x509_certificate(pki.ca_pem(own).encode())  # type: ignore[arg-type]
        theirs = x509.load_pem_x509_certificate(pki.ca_pem(other).encode())  # type: ignore[arg-type]
        PolicyBuilder().store(Store([ours])).time(NOW).build_client_verifier().verify(certificate, [])
        with pytest.raises(VerificationError):
            PolicyBuilder().store(Store([theirs])).time(NOW).build_client_verifier().verify(certificate, [])


def test_a_second_start_keeps_everything_and_the_pin(tmp_path: Path) -> None:
    """Join commands, boards and gateways survive a restart; keys are readable by their owner only."""
    before = make_pki(tmp_path)
    files = {path.name: path.read_bytes() for path in before.directory.iterdir()}
    after = Pki.ensure(tmp_path / "pki", ("10.0.0.5", "fleet.example"), NOW + timedelta(days=1), "another")
    assert after.ca_pin == before.ca_pin
    assert after.fleet_id == "f-1"
    assert {path.name: path.read_bytes() for path in after.directory.iterdir()} == files
    assert {path.stat().st_mode & 0o777 for path in after.directory.iterdir()} == {0o600}


def test_server_certificates_are_made_anew_for_another_address_and_in_the_second_half_of_their_life(tmp_path: Path) -> None:
    """The CA and its pin stay; what it signs follows."""
    before = make_pki(tmp_path)
    first = before.server_files("controller")[0].read_bytes()
    moved = make_pki(tmp_path, ("10.0.0.6",))
    second = moved.server_files("controller")[0].read_bytes()
    verify_server(moved, x509.load_pem_x509_certificate(second), x509.IPAddress(__import__("ipaddress").ip_address("10.0.0.6")), NOW)
    later = make_pki(tmp_path, ("10.0.0.6",), NOW + timedelta(days=200))
    third = later.server_files("controller")[0].read_bytes()
    assert len({first, second, third}) == 3
    assert later.ca_pin == before.ca_pin


def test_a_registry_on_a_machine_of_its_own_gets_its_names_and_none_of_the_authorities(tmp_path: Path) -> None:
    """Its certificate is not good for the controller's address, and what is copied for it signs nothing."""
    pki = Pki.ensure(tmp_path / "pki", ("controller",), NOW, "f-1", registry_hosts=("registry",))
    pki.copy_registry_files(tmp_path / "copied")
    files = {path.name: path.read_bytes() for path in (tmp_path / "copied").iterdir()}
    assert sorted(files) == ["registry-signing.pub", "registry.crt", "registry.key"]
    certificate = x509.load_pem_x509_certificate(files["registry.crt"])
    verify_server(pki, certificate, x509.DNSName("registry"), NOW)
    with pytest.raises(VerificationError):
        verify_server(pki, certificate, x509.DNSName("controller"), NOW)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copied").iterdir()}
    pki.copy_registry_files(tmp_path / "copied")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "copied").iterdir()} == before


def test_what_a_kill_left_half_made_is_completed(tmp_path: Path) -> None:
    """A key without its certificate gets one; a public half without its key is impossible by the order of writing."""
    pki = make_pki(tmp_path)
    pin = pki.ca_pin
    for name in ("servers-ca.crt", "controller.crt", "registry-signing.pub"):
        (pki.directory / name).unlink()
    assert make_pki(tmp_path).ca_pin == pin
    assert (pki.directory / "registry-signing.pub").exists()


@pytest.mark.parametrize("name", ["servers-ca.key", "servers-ca.crt", "fleet.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    """The operator learns which file to restore."""
    pki = make_pki(tmp_path)
    (pki.directory / name).write_text("damaged")
    with pytest.raises(FailedPrecondition, match=name):
        make_pki(tmp_path)


def test_a_ca_certificate_of_another_key_is_not_used(tmp_path: Path) -> None:
    """Files of two backups do not mix."""
    one, two = make_pki(tmp_path / "one"), make_pki(tmp_path / "two")
    (one.directory / "boards-ca.crt").write_bytes((two.directory / "boards-ca.crt").read_bytes())
    with pytest.raises(FailedPrecondition, match=r"not the certificate of boards-ca\.key"):
        make_pki(tmp_path / "one")


def request_by(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> x509.CertificateSigningRequest:
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())


def test_requests_that_cannot_be_signed_are_refused_with_a_reason() -> None:
    """Only a request made with its own P-256 key gets a certificate."""
    good = request_by(ec.generate_private_key(ec.SECP256R1()))
    der = bytearray(good.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    other_curve = request_by(ec.generate_private_key(ec.SECP384R1())).public_bytes(serialization.Encoding.PEM).decode()
    other_kind = request_by(rsa.generate_private_key(65537, 2048)).public_bytes(serialization.Encoding.PEM).decode()
    for text, reason in (
        ("", "cannot be read"),
        ("x" * 10_000, "10000 characters, at most 8192"),
        (forged, "signature of csrPem is wrong"),
        (other_curve, "P-256"),
        (other_kind, "P-256"),
    ):
        with pytest.raises(BadRequest, match=reason):
            read_request(text)


def test_a_certificate_without_a_fleet_name_is_nobody(tmp_path: Path) -> None:
    """A server certificate of our own CA does not open a session."""
    pki = make_pki(tmp_path)
    with pytest.raises(Unauthenticated, match="no rkfleet:// name"):
        read_peer(pki.server_files("registry")[0].read_bytes())
    with pytest.raises(Unauthenticated, match="names nobody"):
        read_peer(pki.ca_pem("servers").encode())
