"""Who may come in, from where, how much and how often."""

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anchorlwf.errors import ConfigError, StorageError, wrong

__all__ = ["WebSettings", "checked_hosts", "is_loopback", "kept_token"]


def is_loopback(host: str) -> bool:
    """Only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class WebSettings:
    """The page's surroundings."""

    annotators: dict[str, str]
    """Name to token, or to `sha256:` and the token's digest in hex."""
    host: str = "127.0.0.1"
    port: int = 8642
    hosts: tuple[str, ...] = ()
    """Further names under which browsers may ask, such as that of a proxy (`annotate.example.org`)."""
    body_limit: int = 4 << 20
    """Bytes of a request."""
    upload_limit: int = 64 << 20
    """Bytes of an import."""
    rate: float = 50.0
    """Requests per second and person, in the long run."""
    burst: int = 200
    """Requests at once."""
    _digests: dict[str, bytes] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name, token in self.annotators.items():
            digest = token.removeprefix("sha256:") if token.startswith("sha256:") else _digest(token)
            self._digests[name] = digest.encode()

    @property
    def cookie(self) -> str:
        """Its name: cookies do not tell ports apart, so the name does."""
        return f"anchorlwf_{self.port}"

    def annotator_of(self, token: str) -> str | None:
        """Whose token it is. All are compared, in the same time for any."""
        digest, owner = _digest(token).encode(), None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                owner = name
        return owner

    def allows_host(self, value: str) -> bool:
        """Whether a Host header names this server.

        A rebinding attack needs a name of the attacker's own; addresses are safe where people may come from outside.
        """
        name, _, port = value.rpartition(":") if not value.endswith("]") and ":" in value else (value, "", "")
        bare = name.strip("[]").lower()
        if bare in {host.lower() for host in self.hosts}:
            return True
        if port != str(self.port) and not (port == "" and self.port == 80):
            return False
        if is_loopback(self.host):
            return is_loopback(bare)
        try:
            ipaddress.ip_address(bare)
        except ValueError:
            return bare in ("localhost", self.host.lower())
        return True


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def checked_hosts(names: Sequence[str]) -> tuple[str, ...]:
    """Names for `WebSettings.hosts`. Raises `ConfigError` for what no browser would send as one, such as a URL."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", name):
            fix = "Give it without scheme and port; any port of it is allowed."
            raise ConfigError(wrong("--allow-host", "a name such as annotate.example.org", repr(name), fix))
    return tuple(names)


def kept_token(beside: Path) -> str:
    """A random token, the same on every start over one store, so that an open page heals after a restart.

    Args:
        beside: the store's file, or the records of a store elsewhere; the token goes next to it, readable by its owner
            alone.

    Raises:
        StorageError: it cannot be written.
    """
    from anchorlwf.annotator.team import SHORTEST_TOKEN

    path = beside.with_name(beside.name + ".token")
    try:
        if path.is_file() and len(token := path.read_text(encoding="ascii").strip()) >= SHORTEST_TOKEN:
            return token
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        token = secrets.token_urlsafe(32)
        path.write_text(token + "\n", encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        fix = "Choose another --store or --out."
        raise StorageError(wrong(f"cannot write {path}", "a writable place", error, fix)) from error
    return token
