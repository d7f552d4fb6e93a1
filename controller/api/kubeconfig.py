"""Kubeconfig files: how a person or tool finds the API and proves who it is.

In: server URL, CA certificate, token. Out: the file's text, or the file itself, readable by its owner only. The controller writes one on
its first start, the command line one more on request.

Source: Kubernetes `client-go/tools/clientcmd/api/v1/types.go`.
"""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from controller.trust.files import write_private

__all__ = ["kubeconfig", "write_kubeconfig"]


def kubeconfig(*, server: str, ca_pem: bytes, token: str, name: str = "rkfleet", namespace: str = "default") -> str:
    """Return the text of a kubeconfig with one cluster, one user and one context, all called `name`."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": base64.b64encode(ca_pem).decode()}}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
        "current-context": name,
    }
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


def write_kubeconfig(path: Path, text: str) -> None:
    """Replace the file whole, mode 0600: a reader sees the old or the new one, and nobody else sees the token.

    Raises:
        Unavailable: The file system refuses.
    """
    write_private(path, text.encode())
