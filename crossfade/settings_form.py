"""The form of `crossfade.yaml`: which keys exist, what each may hold, what it is when left out.

Every scalar has one reader: it takes what the file says and returns a plain value, or says what
would be right. Defaults of the data plane are not repeated here; they are those of `proxy/config.py`.
A required key has the default None, which its reader refuses, so that a key left out and a key left
empty get the same complaint.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from crossfade.settings_file import Substituted, mask
from dualwrite.capture import Way
from flags.document import KEY, KEY_FORM
from flags.match import InvalidRouteError, check_host, check_path
from flags.model import Side, UnsafeMirror
from legacy_adapter import shape
from legacy_adapter.declared import template_names
from proxy.claims import ALGORITHMS
from proxy.config import (
    AccessLog,
    Forwarding,
    HoldLimits,
    Limits,
    Mirroring,
    Target,
    TargetTls,
    Timeouts,
    Tokens,
)

REQUIRED: Any = Field(default=None, validate_default=True)


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address and a port to listen on; 0 lets the system choose the port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, repr=False)
class SecretUrl:
    """A URL that may carry a password. `text` is the whole of it; `repr` and `str` hide the secrets."""

    text: str

    def __str__(self) -> str:
        return mask(self.text)

    def __repr__(self) -> str:
        return f"SecretUrl({str(self)!r})"


@dataclass(frozen=True, slots=True)
class TargetUrl:
    tls: bool
    host: str
    port: int


class _WrongError(ValueError):
    """What a reader raises: `right` says what would have been right, `found` what stands there."""

    def __init__(self, right: str, found: str | None = None) -> None:
        super().__init__(right)
        self.right = right
        self.found = found


def _read_by(reader: Callable[[Any], Any]) -> BeforeValidator:
    def read(value: Any) -> Any:
        try:
            return reader(value)
        except _WrongError as wrong:
            raise PydanticCustomError(
                "wrong", "{right}", {"right": f"expected {wrong.right}", "found": wrong.found}
            ) from None

    return BeforeValidator(read)


def _number(what: str, low: float, high: float, example: str, *, whole: bool) -> BeforeValidator:
    right = f"{what} from {low} to {high}, such as {example}"

    def read(value: Any) -> Any:
        if isinstance(value, Substituted):
            try:
                value = int(value) if whole else float(value)
            except ValueError:
                raise _WrongError(right) from None
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise _WrongError(right)
        if not low <= value <= high:  # NaN is not between anything
            raise _WrongError(right)
        return value if whole else float(value)

    return _read_by(read)


def _seconds(example: str) -> BeforeValidator:
    return _number("a number of seconds", 0.001, 86400, example, whole=False)


def _bytes(low: int, high: int, example: str) -> BeforeValidator:
    return _number("a number of bytes", low, high, example, whole=True)


def _whole(low: int, high: int, example: str) -> BeforeValidator:
    return _number("a whole number", low, high, example, whole=True)


def _truth(value: Any) -> bool:
    if isinstance(value, Substituted) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if isinstance(value, bool):
        return value
    raise _WrongError("true or false")


def _text(what: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not value or not value.isprintable():
            raise _WrongError(what)
        return str(value)

    return read


def _matching(pattern: str, what: str) -> BeforeValidator:
    compiled = re.compile(pattern)

    def read(value: Any) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise _WrongError(what)
        return str(value)

    return _read_by(read)


_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


def _host_port(text: str, default_port: int | None, lowest: int = 1) -> tuple[str, int] | None:
    """`host:port` with IPv6 in brackets, taken apart; None when it is not that."""
    parts = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]@]+))(?::([0-9]{1,5}))?", text)
    if parts is None:
        return None
    v6, name, digits = parts.groups()
    port = int(digits) if digits else default_port
    if port is None or not lowest <= port <= 65535:
        return None
    try:
        if v6:
            return str(IPv6Address(v6)), port
        if re.fullmatch(r"[0-9.]+", name):
            return str(IPv4Address(name)), port
    except AddressValueError:
        return None
    return (name, port) if len(name) <= 253 and _NAME.fullmatch(name) else None


def _address(value: Any) -> Address:
    right = "an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080"
    # Port 0 lets the kernel choose a free one; `crossfade proxy status` names it.
    found = _host_port(value, None, lowest=0) if isinstance(value, str) else None
    if found is None:
        raise _WrongError(right)
    host, port = found
    if host == "localhost":
        return Address("127.0.0.1", port)
    if ":" not in host and not re.fullmatch(r"[0-9.]+", host):
        raise _WrongError(right)
    return Address(host, port)


def address_of(text: str) -> Address:
    """An address as the file has it. Raises ValueError, which says what is right."""
    try:
        return _address(text)
    except _WrongError as error:
        raise ValueError(f"expected {error}") from None


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _some_addresses(value: Any) -> Any:
    if value == []:
        raise _WrongError("at least one address")
    return _one_or_more(value)


def _some_methods(value: Any) -> Any:
    if not isinstance(value, list) or not value:
        raise _WrongError("a list such as [GET, HEAD], or no such key for any method")
    return value


def _empty_is_a_section(value: Any) -> Any:
    """An empty `tls:` must not mean "no TLS": its required keys are missing."""
    return {} if value is None else value


def _target_url(value: Any) -> TargetUrl:
    right = "http://host:port or https://host:port"
    if not isinstance(value, str):
        raise _WrongError(right)
    scheme, colon, rest = value.partition("://")
    if not colon or scheme.lower() not in {"http", "https"}:
        raise _WrongError(right)
    for sign, reason in (
        ("?", "no query in it: requests bring their own"),
        ("#", "no fragment in it: servers never see one"),
        ("@", "no user or password in it: clients bring their own credentials"),
    ):
        if sign in rest:
            raise _WrongError(f"{right}, with {reason}")
    authority, slash, path = rest.partition("/")
    if slash and path:
        raise _WrongError(f"{right}, with no path in it: requests are passed on under their own")
    tls = scheme.lower() == "https"
    found = _host_port(authority, 443 if tls else 80)
    if found is None:
        raise _WrongError(right)
    return TargetUrl(tls, *found)


Server: TypeAlias = SecretUrl | Literal["embedded", "none"]
"""A server of somebody's, our own, or none at all."""


def text_of(server: Server) -> str:
    """Its address with its password, `embedded` or `none`."""
    return server.text if isinstance(server, SecretUrl) else server


def _secret_url(schemes: tuple[str, ...], words: tuple[str, ...], example: str) -> BeforeValidator:
    """A reader of URLs with credentials, or of a word; what it refuses it shows only in outline."""
    right = "".join(f'"{word}" or ' for word in words) + f"a URL such as {example}"

    def outline(value: Any) -> str | None:
        if not isinstance(value, str) or isinstance(value, Substituted):
            return None
        scheme, colon, _ = value.partition("://")
        known = re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]{0,20}", scheme)
        return f'"{scheme}://..." (the rest is not shown)' if colon and known else "a text that is not shown"

    def read(value: Any) -> SecretUrl | str:
        if isinstance(value, str) and value in words:
            return str(value)
        if not isinstance(value, str) or not value.isprintable() or " " in value:
            raise _WrongError(right, outline(value))
        try:
            parts = urlsplit(value)
            _ = parts.port, parse_qsl(parts.query, strict_parsing=bool(parts.query))
        except ValueError:
            raise _WrongError(right, outline(value)) from None
        if parts.scheme not in schemes or "://" not in value or not (parts.netloc or parts.path.strip("/")):
            raise _WrongError(right, outline(value))
        return SecretUrl(str(value))

    return _read_by(read)


def _network(value: Any) -> IPv4Network | IPv6Network:
    right = "an IP address or network, such as 10.0.0.0/8"
    if not isinstance(value, str):
        raise _WrongError(right)
    try:
        return ip_network(value)
    except ValueError:
        pass
    try:
        near = ip_network(value, strict=False)
    except ValueError:
        raise _WrongError(right) from None
    hint = "" if isinstance(value, Substituted) else f": {near} is the network of it"
    raise _WrongError(f"an IP network without host bits{hint}")


_USUAL_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})


def _method(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}", value):
        raise _WrongError("an HTTP method, such as GET")
    if value == "CONNECT":
        raise _WrongError("another method: CONNECT is always refused")
    if value not in _USUAL_METHODS and value.upper() in _USUAL_METHODS:
        raise _WrongError("methods in upper case: they are compared exactly")
    return str(value)


def _path_template(value: Any) -> str:
    right = 'a path from "/" on, each segment plain text or one {name}, with "**" only as the last'
    try:
        if not isinstance(value, str):
            raise _WrongError(right)
        check_path(value)
    except InvalidRouteError:
        raise _WrongError(right) from None
    return str(value)


def _route_host(value: Any) -> str:
    right = "a host name without port, such as api.example.com or *.example.com"
    try:
        if not isinstance(value, str):
            raise _WrongError(right)
        check_host(value)
    except InvalidRouteError:
        raise _WrongError(right) from None
    return str(value).lower()


def _side(value: Any) -> Side:
    if isinstance(value, str) and value in list(Side):
        return Side(value)
    raise _WrongError(f"one of {', '.join(Side)}")


def _log_path(value: Any) -> str | None:
    if value is False or value is None:
        return None
    return _text('a file, "-" for standard output, or off')(value)


def _names(value: Any) -> list[str]:
    return _some_names(value, _FIELD_NAME, "a list of names, such as [X-Debug]")


def _some_words(value: Any) -> list[str]:
    right = "a list of field names or JSON paths, such as [phone, $.user.birthday]"
    return _some_names(value, re.compile(r"[^\s,]{1,200}"), right)


def _renames(value: Any) -> dict[str, str]:
    return _some_pairs(value, _FIELD_NAME, _FIELD_NAME, "names, old and new, such as {X-Old: X-New}")


def _fixed_values(value: Any) -> dict[str, str]:
    right = 'names with their values as text, such as {X-Api: "2"}'
    return _some_pairs(value, _FIELD_NAME, _FIELD_VALUE, right)


def _json_paths(value: Any) -> list[str]:
    return _some_names(value, shape.PATH, "a list of JSON paths, such as [items.*.debug]")


def _json_moves(value: Any) -> dict[str, str]:
    right = "JSON paths, from and to, with as many * on both sides, such as {items.*.login: items.*.name}"
    moves = _some_pairs(value, shape.PATH, shape.PATH, right)
    if any(source.split(".").count("*") != to.split(".").count("*") for source, to in moves.items()):
        raise _WrongError(right)
    return moves


def _json_conversions(value: Any) -> dict[str, str]:
    kinds = re.compile("|".join(shape.CONVERSIONS))
    return _some_pairs(
        value,
        shape.PATH,
        kinds,
        f"JSON paths with one of {', '.join(shape.CONVERSIONS)}, such as {{total: number}}",
    )


def _json_values(value: Any) -> dict[str, Any]:
    right = "JSON paths without * and plain values, such as {version: 2}"
    if not isinstance(value, dict):
        raise _WrongError(right)
    for path, plain in value.items():
        if not shape.is_path(path) or "*" in path.split(".") or isinstance(plain, dict | list):
            raise _WrongError(right)
    return {path: str(plain) if isinstance(plain, str) else plain for path, plain in value.items()}


def _statuses(value: Any) -> dict[int, int]:
    right = "statuses from 400 to 599, from and to, such as {422: 400}"
    pairs = _some_pairs(value, _ERROR_STATUS, None, right)
    if not all(isinstance(to, int) and 400 <= to <= 599 for to in pairs.values()):
        raise _WrongError(right)
    return {int(status): int(to) for status, to in pairs.items()}


def _path_moves(value: Any) -> dict[str, str]:
    right = 'path templates, from and to, such as {"/items/{id}": "/v2/articles/{id}"}'
    moves = _some_pairs(value, None, None, right)
    try:
        for source, to in moves.items():
            check_path(source)
            check_path(to)
            if not template_names(to) <= template_names(source):
                raise _WrongError(f"{right}, where the second uses no name that the first lacks")
    except InvalidRouteError:
        raise _WrongError(right) from None
    return moves


def _some_names(value: Any, name: re.Pattern[str], right: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(n, str) and name.fullmatch(n) for n in value):
        raise _WrongError(right)
    return list(map(str, value))


def _some_pairs(
    value: Any, key: re.Pattern[str] | None, content: re.Pattern[str] | None, right: str
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongError(right)
    for name, inner in value.items():
        if not isinstance(name, str) or (key is not None and not key.fullmatch(name)):
            raise _WrongError(right)
        if content is not None and not (isinstance(inner, str) and content.fullmatch(inner)):
            raise _WrongError(right)
        if content is None and key is None and not isinstance(inner, str):
            raise _WrongError(right)
    return {name: str(inner) if isinstance(inner, str) else inner for name, inner in value.items()}


def _some_adapters(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(re.fullmatch(_ADAPTER, str(name)) for name in value):
        raise _WrongError("adapters under names of letters, digits, dots, dashes and underscores")
    return value


_LONGEST_CUTOVER = 50
"""Names in the databases are made of it, which have 63 bytes."""


def _some_cutovers(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(
        KEY.fullmatch(str(name)) and len(str(name)) <= _LONGEST_CUTOVER for name in value
    ):
        form = KEY_FORM.replace("63", str(_LONGEST_CUTOVER), 1)
        raise _WrongError(f"cutovers under names ({form}), such as shop: {{flags: [items]}}")
    return value


def _flag_names(value: Any) -> list[str]:
    return _some_names(value, KEY, "a list of flags that routes name, such as [items.read, items.write]")


def _table_names(value: Any) -> list[str]:
    right = "a list of legacy's tables, such as [users, shop.orders]"
    return _some_names(value, re.compile(r"[^\s,]{1,127}"), right)


def _key_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _WrongError(
            "a PEM key or a secret, best as file:/path or ${NAME}", "something that is not shown"
        )
    return str(value)


def _one_of(*words: str) -> BeforeValidator:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise _WrongError(f"one of {', '.join(words)}")
        return str(value)

    return _read_by(read)


def _python_file(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not re.search(r"[^/]\.py$", value):
        raise _WrongError("a Python file, such as migration.py")
    return str(value)


_ADAPTER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_FIELD_VALUE = re.compile(r"[\x20-\x7e\xa0-\xff]*")
_ERROR_STATUS = re.compile(r"[45][0-9]{2}")

TRUTH = _read_by(_truth)
LISTEN = _read_by(_address)
PATH = _read_by(_text("a path"))
HOST_VALUE = _matching(
    r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?",
    "a Host value, such as api.example.com",
)
HOST_NAME = _matching(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", "a host name")
PSEUDONYM = _matching(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}", "a word for the Via field, such as crossfade")
FLAG = _matching(KEY.pattern, f"a flag's key ({KEY_FORM}), such as items.read")
ADAPTER = _matching(_ADAPTER, "the name of an adapter, such as session")
COOKIE = _matching(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}", "the name of a cookie, such as sid")
HEADER = _matching(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}", "the name of a field, such as Authorization")
JSON_PATH = _matching(shape.PATH.pattern, "a JSON path, such as session.token")
SECTION = BeforeValidator(_empty_is_a_section)
SERVERS = ("embedded", "none")
STORE = _secret_url(("postgresql", "postgres"), SERVERS, "postgresql://user:password@host/db")
BUS = _secret_url(("redis", "rediss", "valkey", "valkeys", "unix"), SERVERS, "redis://host:6379/0")
DATABASE = _secret_url(
    ("postgresql", "postgres", "mysql", "mariadb", "sqlite"), (), "postgresql://user:password@host/db"
)


class Section(BaseModel):
    """A mapping with known keys only. An empty section (`timeouts:`) leaves everything at its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _left_empty(cls, value: Any) -> Any:
        if value is None:
            return {}
        if not isinstance(value, dict):
            keys = ", ".join(cls.model_fields)
            raise PydanticCustomError(
                "wrong", "{right}", {"right": f"expected a mapping with keys of {keys}", "found": None}
            )
        return value


_TIMEOUTS = Timeouts()
_LIMITS = Limits()
_FORWARDING = Forwarding()
_ACCESS_LOG = AccessLog()
_TARGET = Target("", 0)
_TLS = TargetTls()
_TOKENS = Tokens()
_MIRROR = Mirroring()
_HOLD = HoldLimits()


class PoolForm(Section):
    max_connections: Annotated[int, _whole(1, 65535, "256")] = _TARGET.max_connections
    max_waiting: Annotated[int, _whole(0, 1000000, "1024")] = _TARGET.max_waiting
    wait_timeout: Annotated[float, _seconds("5")] = _TARGET.wait_timeout
    connect_timeout: Annotated[float, _seconds("3")] = _TARGET.connect_timeout
    idle_timeout: Annotated[float, _seconds("15")] = _TARGET.idle_timeout


class TargetTlsForm(Section):
    ca: Annotated[str | None, PATH] = _TLS.ca_file
    server_name: Annotated[str | None, HOST_NAME] = _TLS.server_name
    verify: Annotated[bool, TRUTH] = _TLS.verify


class TargetForm(Section):
    url: Annotated[TargetUrl, _read_by(_target_url)] = REQUIRED
    tls: Annotated[TargetTlsForm | None, SECTION] = None
    host: Annotated[str | None, HOST_VALUE] = _TARGET.host_header
    pool: PoolForm = PoolForm()

    @model_validator(mode="after")
    def _tls_needs_https(self) -> Self:
        if self.tls is not None and not self.url.tls:
            raise _wrong_at("url", "expected https://..., because tls is given beside it")
        return self


class TargetsForm(Section):
    legacy: TargetForm = REQUIRED
    new: TargetForm = REQUIRED


class TimeoutsForm(Section):
    header: Annotated[float, _seconds("10")] = _TIMEOUTS.header
    body_idle: Annotated[float, _seconds("30")] = _TIMEOUTS.body_idle
    keepalive: Annotated[float, _seconds("75")] = _TIMEOUTS.keepalive
    response: Annotated[float, _seconds("60")] = _TIMEOUTS.response
    response_idle: Annotated[float, _seconds("300")] = _TIMEOUTS.response_idle
    write_idle: Annotated[float, _seconds("30")] = _TIMEOUTS.write_idle
    tunnel_idle: Annotated[float, _seconds("3600")] = _TIMEOUTS.tunnel_idle
    expect: Annotated[float, _seconds("1")] = _TIMEOUTS.expect
    drain: Annotated[float, _seconds("30")] = _TIMEOUTS.drain


class LimitsForm(Section):
    head_bytes: Annotated[int, _bytes(1024, 1048576, "32768")] = _LIMITS.head_bytes
    target_bytes: Annotated[int, _bytes(256, 1048576, "16384")] = _LIMITS.target_bytes
    headers: Annotated[int, _whole(8, 10000, "250")] = _LIMITS.headers
    body_bytes: Annotated[int, _bytes(0, 2**50, "10485760 (0: no limit of ours)")] = _LIMITS.body_bytes
    translated_bytes: Annotated[int, _bytes(1024, 2**26, "1048576")] = _LIMITS.translated_bytes
    connections: Annotated[int, _whole(1, 1000000, "10000")] = _LIMITS.connections
    min_body_rate: Annotated[int, _bytes(0, 2**30, "128, a second")] = _LIMITS.min_body_rate

    @model_validator(mode="after")
    def _target_within_head(self) -> Self:
        if self.target_bytes >= self.head_bytes:
            raise _wrong_at("target_bytes", f"expected less than head_bytes, which is {self.head_bytes}")
        return self


class ForwardingForm(Section):
    trusted: Annotated[
        list[Annotated[IPv4Network | IPv6Network, _read_by(_network)]], BeforeValidator(_one_or_more)
    ] = []
    x_forwarded: Annotated[bool, TRUTH] = _FORWARDING.x_forwarded
    forwarded: Annotated[bool, TRUTH] = _FORWARDING.forwarded
    via: Annotated[str | None, PSEUDONYM] = _FORWARDING.via


class ListenTlsForm(Section):
    cert: Annotated[str, PATH] = REQUIRED
    key: Annotated[str, PATH] = REQUIRED


class AccessLogForm(Section):
    path: Annotated[str | None, _read_by(_log_path)] = _ACCESS_LOG.path
    sample: Annotated[float, _number("a share", 0, 1, "0.01", whole=False)] = _ACCESS_LOG.sample


class AdminForm(Section):
    listen: Annotated[Address, LISTEN] = Address("127.0.0.1", 8081)


class MatchForm(Section):
    methods: Annotated[list[Annotated[str, _read_by(_method)]] | None, _read_by(_some_methods)] = None
    path: Annotated[str, _read_by(_path_template)] = REQUIRED
    host: Annotated[str | None, _read_by(_route_host)] = None


class RouteAdapterForm(Section):
    legacy: Annotated[str | None, ADAPTER] = None
    new: Annotated[str | None, ADAPTER] = None
    on_failure: Annotated[str, _one_of("refuse", "untranslated")] = "refuse"


class RouteMirrorForm(Section):
    unsafe: Annotated[str | None, _one_of(*UnsafeMirror)] = None
    header: Annotated[str | None, _read_by(_text("a field, such as Idempotency-Key"))] = None

    @model_validator(mode="after")
    def _header_fits(self) -> Self:
        given = self.header or ""
        name, colon, value = given.partition(":")
        if self.unsafe == UnsafeMirror.DRY_RUN:
            if not (_FIELD_NAME.fullmatch(name) and colon and _FIELD_VALUE.fullmatch(value.strip())):
                raise _wrong_at(
                    "header", 'expected the field that asks for a dry run, such as "X-Dry-Run: 1"'
                )
        elif self.unsafe == UnsafeMirror.IDEMPOTENCY_KEY:
            if given and not _FIELD_NAME.fullmatch(given):
                raise _wrong_at(
                    "header", "expected the name of the field with the key, such as Idempotency-Key"
                )
        elif given:
            raise _wrong_at("header", "expected only with unsafe: dry_run or idempotency_key")
        return self


class RouteForm(Section):
    flag: Annotated[str, FLAG] = REQUIRED
    match: MatchForm = REQUIRED
    target: Annotated[Side, _read_by(_side)] = Side.LEGACY
    adapter: RouteAdapterForm = RouteAdapterForm()
    mirror: RouteMirrorForm = RouteMirrorForm()
    writes: Annotated[bool, TRUTH] = False


class FieldRulesForm(Section):
    rename: Annotated[dict[str, str], _read_by(_renames)] = {}
    remove: Annotated[list[str], _read_by(_names)] = []
    set: Annotated[dict[str, str], _read_by(_fixed_values)] = {}


class JsonRulesForm(Section):
    rename: Annotated[dict[str, str], _read_by(_json_moves)] = {}
    remove: Annotated[list[str], _read_by(_json_paths)] = []
    convert: Annotated[dict[str, str], _read_by(_json_conversions)] = {}
    set: Annotated[dict[str, Any], _read_by(_json_values)] = {}


class MessageRulesForm(Section):
    headers: FieldRulesForm = FieldRulesForm()
    body: JsonRulesForm = JsonRulesForm()


class ErrorRulesForm(Section):
    body: JsonRulesForm = JsonRulesForm()
    status: Annotated[dict[int, int], _read_by(_statuses)] = {}


class SessionForm(Section):
    clients: Annotated[str, _one_of("cookie", "bearer")] = REQUIRED
    cookie: Annotated[str, COOKIE] = REQUIRED
    token: Annotated[str | None, JSON_PATH] = None
    secure: Annotated[bool, TRUTH] = False


class AdapterForm(Section):
    path: Annotated[dict[str, str], _read_by(_path_moves)] = {}
    query: FieldRulesForm = FieldRulesForm()
    request: MessageRulesForm = MessageRulesForm()
    answer: MessageRulesForm = MessageRulesForm()
    errors: ErrorRulesForm = ErrorRulesForm()
    session: Annotated[SessionForm | None, SECTION] = None


class TokenKeyForm(Section):
    algorithm: Annotated[str, _one_of(*ALGORITHMS)] = REQUIRED
    key: Annotated[str, _read_by(_key_text)] = REQUIRED
    id: Annotated[str | None, _read_by(_text("a key id (kid)"))] = None


class TokensForm(Section):
    header: Annotated[str, HEADER] = _TOKENS.header
    keys: list[TokenKeyForm] | None = None
    issuer: Annotated[str | None, _read_by(_text("the issuer (iss) of the tokens"))] = None
    audience: Annotated[str | None, _read_by(_text("the audience (aud) of the tokens"))] = None


class RedactForm(Section):
    also: Annotated[list[str], _read_by(_some_words)] = []
    never: Annotated[list[str], _read_by(_some_words)] = []
    emails: Annotated[bool, TRUTH] = True


class ShadowForm(Section):
    in_flight: Annotated[int, _whole(1, 10000, "64")] = _MIRROR.in_flight
    held_bytes: Annotated[int, _bytes(65536, 2**32, "16777216")] = _MIRROR.held_bytes
    body_bytes: Annotated[int, _bytes(1024, 2**24, "131072")] = _MIRROR.body_bytes
    rate: Annotated[float, _number("requests a second", 0, 10**6, "100 (0: no bound)", whole=False)] = (
        _MIRROR.rate
    )
    connects: Annotated[float, _number("connections a second", 1, 10**6, "50", whole=False)] = (
        _MIRROR.connects
    )
    deadline: Annotated[float, _seconds("10")] = _MIRROR.deadline
    busy_after: Annotated[float, _seconds("0.005")] = _MIRROR.busy_after
    busy_share: Annotated[float, _number("a share", 0.05, 1, "0.8", whole=False)] = _MIRROR.busy_share
    ask_again: Annotated[float, _number("a share", 0, 1, "0.01", whole=False)] = _MIRROR.ask_again
    ask_again_after: Annotated[float, _seconds("0.25")] = _MIRROR.ask_again_after
    inspect: Annotated[float, _number("pairs a second", 0, 10**4, "10", whole=False)] = 10.0
    compare_here: Annotated[bool, TRUTH] = True
    keep_days: Annotated[int, _whole(1, 3650, "14")] = 14
    openapi: Annotated[str | None, PATH] = None
    sandbox: Annotated[TargetForm | None, SECTION] = None
    redact: RedactForm = RedactForm()


class DatabaseForm(Section):
    url: Annotated[SecretUrl, DATABASE] = REQUIRED
    capture: Annotated[str, _one_of(*Way)] = Way.STREAM.value


class DataForm(Section):
    name: Annotated[
        str | None,
        _matching(
            r"[a-z0-9_]{1,40}",
            "at most 40 small letters, digits and underscores, such as shop: slots are named by it",
        ),
    ] = None
    legacy: DatabaseForm = REQUIRED
    new: DatabaseForm = REQUIRED
    run_here: Annotated[bool, TRUTH] = True
    copy_rows_per_second: Annotated[int, _whole(0, 10**9, "20000")] = 0


class CutoverForm(Section):
    flags: Annotated[list[str], _read_by(_flag_names)] = REQUIRED
    tables: Annotated[list[str], _read_by(_table_names)] = []
    read_your_writes: Annotated[bool, TRUTH] = False
    max_lag: Annotated[float | None, _seconds("10")] = None


class HoldForm(Section):
    requests: Annotated[int, _whole(0, 10**6, "2000")] = _HOLD.requests
    seconds: Annotated[float, _seconds("15")] = _HOLD.seconds


class FileForm(Section):
    """The whole file."""

    listen: Annotated[list[Annotated[Address, LISTEN]], _read_by(_some_addresses)] = [
        Address("127.0.0.1", 8080)
    ]
    admin: AdminForm = AdminForm()
    workers: Annotated[int | None, _whole(1, 256, "2")] = None
    data_dir: Annotated[str, PATH] = ".crossfade"
    targets: TargetsForm = REQUIRED
    routes: list[RouteForm] | None = None
    timeouts: TimeoutsForm = TimeoutsForm()
    limits: LimitsForm = LimitsForm()
    forwarding: ForwardingForm = ForwardingForm()
    tls: Annotated[ListenTlsForm | None, SECTION] = None
    proxy_protocol: Annotated[bool, TRUTH] = False
    access_log: AccessLogForm = AccessLogForm()
    adapters: Annotated[dict[str, AdapterForm], _read_by(_some_adapters)] = {}
    jwt: TokensForm = TokensForm()
    shadow: ShadowForm = ShadowForm()
    store: Annotated[Server, STORE] = "embedded"
    bus: Annotated[Server, BUS] = "embedded"
    code: Annotated[str | None, _read_by(_python_file)] = None
    data: Annotated[DataForm | None, SECTION] = None
    cutovers: Annotated[dict[str, CutoverForm], _read_by(_some_cutovers)] = {}
    hold: HoldForm = HoldForm()


def section_in(annotation: object) -> type[Section] | None:
    """The section that a field of this type holds, alone or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


def _wrong_at(key: str, right: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{right}", {"right": right, "found": None, "at": key})
