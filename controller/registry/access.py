"""Who may do what at the registry: the Authorization header in, claims or a challenge out.

The routes ask before they touch a repository. A caller without a fitting token is told where to get one (`WWW-Authenticate`), which is
how OCI clients log in. The challenge always names pull and push: the token service grants the part that the caller may have, and clients
that keep one token for a whole push need it from their first request on.

Source: distribution `docs/content/spec/auth/token.md`; RFC 6750, section 3.
"""

from __future__ import annotations

from typing import Final

from controller.trust.pull_tokens import SERVICE, Claims, TokenVerifier
from rkfleet.errors import PermissionDenied, Unauthenticated

__all__ = ["Gate"]


class Gate:
    """Lets requests through that carry a fitting token."""

    def __init__(self, verifier: TokenVerifier, realm: str) -> None:
        """Take what verifies tokens, and the URL at which callers get one."""
        self._verifier: Final = verifier
        self._realm: Final = realm

    def enter(self, authorization: str) -> Claims:
        """Return what the caller's token says.

        Raises:
            Unauthenticated: There is no valid token; details carry the challenge.
        """
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unauthenticated("a bearer token is required", challenge=self._challenge(""))
        try:
            return self._verifier.verify(token.strip())
        except Unauthenticated as error:
            raise Unauthenticated(error.message, challenge=self._challenge("", "invalid_token")) from error

    def admit(self, authorization: str, repository: str, action: str, digest: str = "") -> Claims:
        """Return the claims of a caller who may do `action` on the repository; `digest` names the blob that is read.

        Raises:
            Unauthenticated: There is no valid token, or it is for something else; details carry the challenge.
            PermissionDenied: The token is a board's and does not name this blob.
        """
        try:
            claims = self.enter(authorization)
        except Unauthenticated as error:
            fault = "invalid_token" if authorization else ""
            raise Unauthenticated(error.message, challenge=self._challenge(repository, fault)) from error
        if claims.allows(repository, action, digest):
            return claims
        if claims.digests:
            raise PermissionDenied(f"the token of {claims.subject} does not open {action} of {digest or 'manifests'} in {repository!r}")
        raise Unauthenticated(
            f"the token of {claims.subject} does not allow {action} in {repository!r}",
            challenge=self._challenge(repository, "insufficient_scope"),
        )

    def _challenge(self, repository: str, fault: str = "") -> str:
        parts = [f'realm="{self._realm}"', f'service="{SERVICE}"']
        if repository:
            parts.append(f'scope="repository:{repository}:pull,push"')
        if fault:
            parts.append(f'error="{fault}"')
        return "Bearer " + ",".join(parts)
