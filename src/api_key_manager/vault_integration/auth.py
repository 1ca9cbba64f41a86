"""How a client comes by its token where it is given none. No ``repr`` shows a secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["AppRole", "Auth", "Kubernetes"]


@dataclass(frozen=True, slots=True)
class AppRole:
    """A role id and secret id: https://developer.hashicorp.com/vault/docs/auth/approle."""

    role_id: str
    secret_id: str = field(repr=False)
    mount: str = "approle"


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """The pod's service account: https://developer.hashicorp.com/vault/docs/auth/kubernetes.

    Its token is read at each login, because the kubelet replaces it every hour.
    """

    role: str
    mount: str = "kubernetes"
    token_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


Auth = AppRole | Kubernetes
