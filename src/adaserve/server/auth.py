"""The API key: a dependency of every route but a short public list."""

import hashlib
import hmac
from collections.abc import Callable, Sequence

from starlette.requests import Request

from adaserve.server.problems import Kind, Problem

PUBLIC = frozenset({"/health", "/ready"})
"""Routes that ask for no key: probes of a load balancer."""


def key_checker(keys: Sequence[str]) -> Callable[[Request], None]:
    """Make the dependency that lets a request pass; no keys let every request pass.

    Digests are compared, all of them and in constant time, so that neither a key's length nor its beginning can be probed.
    """
    digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def require_key(request: Request) -> None:
        if not digests or request.scope["route"].path in PUBLIC:
            return
        given = hashlib.sha256((key_of(request) or "").encode(errors="surrogateescape")).digest()
        matches = [hmac.compare_digest(given, digest) for digest in digests]
        if not any(matches):
            raise Problem(Kind.NO_KEY, "missing or wrong API key; send it as: Authorization: Bearer KEY")

    return require_key


def key_of(request: Request) -> str | None:
    """Return the bearer token of a request, or None."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None
