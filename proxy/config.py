"""What a proxy worker needs to know, as frozen values.

The wiring reads and checks `crossfade.yaml` and builds these; the proxy never sees a file. Times
are seconds, sizes are bytes. A worker holds one `ProxyConfig` and swaps it whole on reload.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from flags.model import Side
from legacy_adapter.declared import Declaration


@dataclass(frozen=True, slots=True)
class TargetTls:
    """TLS towards a target: verified against `ca_file` (or the system's store) unless told otherwise."""

    ca_file: str | None = None
    server_name: str | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """One backend and the bounds of the pool that each worker keeps towards it."""

    host: str
    port: int
    tls: TargetTls | None = None
    host_header: str | None = None
    """None keeps the client's Host, which is what a transparent proxy does."""
    max_connections: int = 256
    """Connections of one worker; further requests wait."""
    max_waiting: int = 1024
    """Requests of one worker that may wait for a connection; further ones get 503."""
    wait_timeout: float = 5.0
    """How long a request waits for a connection before it gets 503."""
    connect_timeout: float = 3.0
    idle_timeout: float = 15.0
    """A pooled connection is closed after this idle time, before the backend closes it."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Each of these is a named reason in metrics when it cuts something off."""

    header: float = 10.0
    """From the first byte of a request (or from accept) to the end of its head."""
    body_idle: float = 30.0
    """No byte of a request body for so long."""
    keepalive: float = 75.0
    """An idle client connection between two requests."""
    response: float = 60.0
    """From the end of the request to the head of the answer."""
    response_idle: float = 300.0
    """No byte of an answer's body for so long."""
    write_idle: float = 30.0
    """The client (or the target) takes no byte although bytes are waiting for it."""
    tunnel_idle: float = 3600.0
    """No byte in either direction of an upgraded connection."""
    expect: float = 1.0
    """How long the target may keep silent on `Expect: 100-continue` before we say 100 ourselves."""
    drain: float = 30.0
    """How long requests in flight may go on after the worker was told to stop."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds per worker; each refusal is counted by reason."""

    head_bytes: int = 32_768
    """A request or response head: start line and all fields."""
    target_bytes: int = 16_384
    """The request target within the head (414 beyond it)."""
    headers: int = 250
    body_bytes: int = 0
    """A request body; 0 leaves it to the backend."""
    connections: int = 10_000
    """Client connections of one worker."""
    min_body_rate: int = 128
    """Bytes per second that a body must move, on average over an idle window, to count as alive."""
    translated_bytes: int = 1_048_576
    """A body that an adapter translates, which is held whole for that."""


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Which forwarding fields are written, and which peers' own are believed."""

    trusted: tuple[IPv4Network | IPv6Network, ...] = ()
    x_forwarded: bool = True
    """X-Forwarded-For and X-Forwarded-Proto."""
    forwarded: bool = False
    """Forwarded, RFC 7239."""
    via: str | None = None
    """Our pseudonym in Via, both ways; None writes no Via."""


@dataclass(frozen=True, slots=True)
class ListenTls:
    """The certificate that clients see."""

    cert_file: str
    key_file: str


@dataclass(frozen=True, slots=True)
class AccessLog:
    """`sample` is the share of answers below 500 that are logged; 5xx are logged always."""

    path: str | None = "-"
    """A file, "-" for standard output, None for no log."""
    sample: float = 0.01


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key that tokens may be signed with: a PEM for algorithms with two keys, else the secret itself."""

    algorithm: str
    key: str = field(repr=False)
    id: str | None = None
    """`kid`: the key for tokens that name it; None is for any token."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Where a request has its token, and by which keys it is believed; without keys it is, unverified."""

    header: str = "authorization"
    """In lower case; what stands behind `Bearer ` in it, or all of it in any other field."""
    keys: tuple[TokenKey, ...] = ()
    issuer: str | None = None
    audience: str | None = None


@dataclass(frozen=True, slots=True)
class Mirroring:
    """The bounds of what is asked for comparison, per worker. What is beyond them is not mirrored."""

    in_flight: int = 64
    """Requests that are being mirrored, and so connections for it to each side."""
    held_bytes: int = 16_777_216
    """Bodies that are kept for that."""
    body_bytes: int = 131_072
    """The longest body, of a request or an answer, that is compared."""
    rate: float = 0.0
    """A second; 0 has no bound."""
    connects: float = 50.0
    """New connections a second: a side that ends each one must not cost one for each request."""
    deadline: float = 10.0
    """Seconds after which an answer is not waited for."""
    busy_after: float = 0.005
    """Seconds that the worker may be behind; while it is more, clients have it for themselves."""
    busy_share: float = 0.8
    """The share of its time that the worker may be busy before less is mirrored; 1 sets no bound."""
    ask_again: float = 0.01
    """The share of which legacy is asked twice, to learn how often it differs from itself."""
    ask_again_after: float = 0.25
    """Seconds between two askings of the same side."""
    inspect: float = 10.0
    """Pairs a second that are drawn by lot at the most, however many are mirrored; 0 draws none."""
    sandbox: Target | None = None


@dataclass(frozen=True, slots=True)
class HoldLimits:
    """The bounds, per worker, of what waits while a cutover moves the authority. Beyond them it is 503."""

    requests: int = 2_000
    """Each keeps its head and at most 64 KiB of its body."""
    seconds: float = 15.0
    """Shorter than clients wait: a request whose client has given up is not carried out."""


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """All that the data plane takes from the configuration."""

    targets: dict[Side, Target]
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    forwarding: Forwarding = field(default_factory=Forwarding)
    listen_tls: ListenTls | None = None
    proxy_protocol: bool = False
    """Every connection begins with a PROXY protocol header (v1 or v2); one without it is closed."""
    access_log: AccessLog = field(default_factory=AccessLog)
    tokens: Tokens = field(default_factory=Tokens)
    mirror: Mirroring = field(default_factory=Mirroring)
    holding: HoldLimits = field(default_factory=HoldLimits)
    adapters: tuple[tuple[str, Declaration], ...] = ()
    """Declared ones, by name; users' code may bring others."""
