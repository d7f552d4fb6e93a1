"""The identity of a board or a gateway: what enrolment left in its `identity/` directory.

In: the directory. Out: names, addresses and PEM, or `None` while there is none; and `ensure_identity`, which runs the enrolment client
(`python -m rkfleet.enroll`) as a short-lived child until it succeeds. Called by the `app.py` of agent and gateway. It stands apart from
`rkfleet/enroll.py` because that one needs `cryptography`, whose memory a running agent must not carry.

Files, each mode 0600: `key.pem` (written first), `cert.pem`, `ca.pem` (servers CA), for boards `serving.pem` and `gateways-ca.pem`, and
last `identity.json`: an identity is there exactly when this file is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from pathlib import Path
from typing import Final, Literal

import msgspec

from rkfleet.clock import Clock, parse_time
from rkfleet.enrolment import JoinTokenResponse
from rkfleet.errors import Conflict, FailedPrecondition, FleetError, Internal, Invalid, PermissionDenied, Unavailable

__all__ = ["Enrolment", "Facts", "Identity", "ensure_identity", "load_identity", "read_join_token", "run_client"]

RETRY_SECONDS_MIN: Final = 1.0
RETRY_SECONDS_MAX: Final = 30.0  # A controller that is away is asked twice a minute; the join token lives an hour.

_log = logging.getLogger(__name__)


class Facts(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What `identity.json` says; see `Identity`."""

    fleet_id: str
    name: str
    controller: str
    session_address: str = ""
    api_token: str = ""
    issued: str = ""
    expires: str = ""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who this program is in its fleet.

    Attributes:
        fleet_id: Fleet that it enrolled in.
        name: Name of the board or gateway.
        controller: Base URL of the API.
        session_address: `host:port` of the session listener; boards only.
        api_token: Bearer token for the API; gateways only.
        directory: Where the files are.
        issued: When the certificates were issued, RFC 3339 by the controller's clock; empty for those of before it was told.
        expires: When they end.
    """

    fleet_id: str
    name: str
    controller: str
    directory: Path
    session_address: str = ""
    api_token: str = ""
    issued: str = ""
    expires: str = ""

    @property
    def expires_timestamp(self) -> float | None:
        """When the certificates end, in seconds since 1970; None for those of before it was told."""
        try:
            return parse_time(self.expires).timestamp()
        except ValueError:
            return None

    @property
    def key_file(self) -> Path:
        """Private key, PEM."""
        return self.directory / "key.pem"

    @property
    def cert_file(self) -> Path:
        """Client certificate, PEM."""
        return self.directory / "cert.pem"

    @property
    def ca_file(self) -> Path:
        """Servers CA, PEM: verifies controller, registry and boards' serving listeners."""
        return self.directory / "ca.pem"

    @property
    def serving_cert_file(self) -> Path:
        """Server certificate of a board's serving listener over the same key, PEM."""
        return self.directory / "serving.pem"

    @property
    def gateways_ca_file(self) -> Path:
        """Gateways CA, PEM: whom a board's serving listener lets in."""
        return self.directory / "gateways-ca.pem"


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to get an identity.

    Attributes:
        role: `board` or `gateway`.
        controller: Base URL of the API, `https://host:port`.
        token: Join token.
        ca_pin: `sha256:` and the hex hash of the servers CA's public key.
        machine_id: Identity of the machine; boards only, empty if nothing tells it.
    """

    role: Literal["board", "gateway"]
    name: str
    controller: str
    token: str
    ca_pin: str
    machine_id: str = ""


def load_identity(directory: Path) -> Identity | None:
    """Return the identity in this directory, or None if enrolment has not finished.

    Raises:
        FailedPrecondition: A file is there and cannot be read, or one is missing.
    """
    path = directory / "identity.json"
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=Facts)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise FailedPrecondition(f"{path} cannot be read: {error}; delete {directory} and join again with a new token") from error
    identity = Identity(directory=directory, **msgspec.structs.asdict(facts))
    for file in (identity.key_file, identity.cert_file, identity.ca_file):
        if not file.exists():
            raise FailedPrecondition(f"{file} is missing; delete {directory} and join again with a new token")
    return identity


def read_join_token(path: Path) -> JoinTokenResponse:
    """Return the token and the pin that `rkfleet join-token create --token-file` wrote, or that its JSON output says.

    Raises:
        FailedPrecondition: The file cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=JoinTokenResponse)
    except (OSError, msgspec.MsgspecError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise FailedPrecondition(f"join token file {path} cannot be read: {why}; see: rkfleet join-token create --token-file") from error


async def ensure_identity(
    directory: Path, enrolment: Enrolment | None, clock: Clock, jitter: random.Random, token_file: Path | None = None
) -> Identity:
    """Return the identity in this directory, enrolling first if there is none; waits for a controller that is away.

    Args:
        directory: Where it is, or will be.
        enrolment: What to enrol with; None if the program is only expected to have an identity.
        clock: Time.
        jitter: Spreads retries.
        token_file: Holds the token and the pin that the enrolment lacks; not looked at once there is an identity.

    Raises:
        FailedPrecondition: There is no identity and nothing to enrol with.
        PermissionDenied, Invalid: The controller refuses for good; the message says why.
    """
    pause = RETRY_SECONDS_MIN
    while (found := load_identity(directory)) is None:
        if enrolment is None:
            raise FailedPrecondition(f"{directory} holds no identity; give --token and --ca-pin, see: rkfleet join-token create")
        if token_file is not None:
            given = read_join_token(token_file)
            enrolment = msgspec.structs.replace(enrolment, token=given.token, ca_pin=given.ca_pin)
        refusal = await run_client("rkfleet.enroll", directory, enrolment)
        if refusal is not None:
            if not refusal.retryable:
                raise refusal
            _log.warning("enrolment waits: %s", refusal.message)
            await clock.sleep(jitter.uniform(pause / 2, pause))
            pause = min(2 * pause, RETRY_SECONDS_MAX)
    return found


async def run_client(module: str, directory: Path, request: msgspec.Struct) -> FleetError | None:
    """Run `rkfleet.enroll` or `rkfleet.renew` on a directory once, as a child, and return why it failed, or None.

    What it is told goes over standard input, where `ps` does not show it.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, str(directory), stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, stderr = await child.communicate(msgspec.json.encode(request))
    except BaseException:
        if child.returncode is None:
            child.kill()
        await child.wait()
        raise
    if child.returncode == 0:
        return None
    message = stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"{module} ended with status {child.returncode}"
    by_status = {one.exit_status: one for one in (Invalid, Conflict, PermissionDenied, Unavailable)}
    return by_status.get(child.returncode or 0, Internal)(message)
