"""An adapter that is declared instead of written: paths, query, fields, session, JSON shapes, errors.

What a rule does not name stays as it came. JSON rules look only at bodies that say they are JSON; such a
body that cannot be read is a failure of the adapter, because half a translation must not go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from urllib.parse import quote_plus, unquote_plus

from core.paths import equivalent_path
from legacy_adapter.adapter import Plugs
from legacy_adapter.messages import Answer, Fields, Request
from legacy_adapter.shape import ShapeRules, put_at, read, reshape, value_at, write

_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_TEMPLATE_PART = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}|\*\*")


@dataclass(frozen=True, slots=True)
class FieldRules:
    """What is done to fields, or to the parameters of a query, in this order."""

    rename: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    set: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Not shown, because fixed values may be secrets."""

    def __bool__(self) -> bool:
        return bool(self.rename or self.remove or self.set)


@dataclass(frozen=True, slots=True)
class SessionRules:
    """Who is logged in, said in another way: by a cookie here, by a bearer token there; the secret is one.

    `clients` is what clients use, "cookie" or "bearer"; the backend uses the other. `cookie` is its name.
    `token` is the path in the JSON of an answer at which a session that begins has its token, None where
    answers do not begin sessions.
    """

    clients: str
    cookie: str
    token: str | None = None
    secure: bool = False
    """Whether a cookie that is set is for TLS only."""


@dataclass(frozen=True, slots=True)
class ErrorRules:
    """What is done to answers from 400 on, instead of the rules for other answers."""

    json: ShapeRules = field(default_factory=ShapeRules)
    statuses: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Declaration:
    """One adapter as `crossfade.yaml` declares it."""

    paths: tuple[tuple[str, str], ...] = ()
    """Templates of whole paths, from and to; the first that matches holds."""
    query: FieldRules = field(default_factory=FieldRules)
    request_headers: FieldRules = field(default_factory=FieldRules)
    request_json: ShapeRules = field(default_factory=ShapeRules)
    answer_headers: FieldRules = field(default_factory=FieldRules)
    answer_json: ShapeRules = field(default_factory=ShapeRules)
    errors: ErrorRules = field(default_factory=ErrorRules)
    session: SessionRules | None = None


class DeclaredAdapter:
    """The `legacy_adapter.adapter.Adapter` that does what `declaration` says."""

    def __init__(self, declaration: Declaration) -> None:
        self._rules = declaration
        self._paths = [(_template(source), destination) for source, destination in declaration.paths]
        self._statuses = dict(declaration.errors.statuses)

    def request(self, request: Request) -> Request:
        rules = self._rules
        # As routes see it: a path that is spelled otherwise goes to this backend, and is translated for it.
        path = equivalent_path(request.path.encode("latin-1")).decode() if self._paths else ""
        for template, destination in self._paths:
            found = template.fullmatch(path)
            if found is not None:
                request = request.with_path(_filled(destination, found))
                break
        if rules.query and request.target != "*":  # which stands for the server, and has no query
            request = request.with_query(_changed_query(request.query, rules.query))
        if rules.session is not None:
            request = _session_to_backend(request, rules.session)
        if rules.request_headers:
            request = replace(request, headers=_changed_fields(request.headers, rules.request_headers))
        if rules.request_json and request.is_json:
            request = replace(request, body=reshape(request.body, rules.request_json))
        return request

    def answer(self, answer: Answer, request: Request) -> Answer:  # noqa: ARG002  (of the Protocol)
        rules = self._rules
        failed = answer.status >= 400
        shape = rules.errors.json if failed else rules.answer_json
        if rules.session is not None and not failed:
            answer = _session_to_client(answer, rules.session)
        if rules.answer_headers:
            answer = replace(answer, headers=_changed_fields(answer.headers, rules.answer_headers))
        if shape and answer.is_json:
            answer = replace(answer, body=reshape(answer.body, shape))
        if failed:
            answer = replace(answer, status=self._statuses.get(answer.status, answer.status))
        return answer


def with_declared(plugs: Plugs, declared: Iterable[tuple[str, Declaration]]) -> Plugs:
    """`plugs` and the declared adapters besides."""
    made = {name: DeclaredAdapter(declaration) for name, declaration in declared}
    return replace(plugs, adapters={**made, **plugs.adapters}) if made else plugs


def template_names(template: str) -> set[str]:
    """The names (and `**`) that a path template has, which those it becomes may use."""
    return {part[1] or "**" for part in _TEMPLATE_PART.finditer(template)}


def _template(template: str) -> re.Pattern[str]:
    """`/a/**` matches `/a` too, as it does in a route."""
    template = equivalent_path(template.encode()).decode()
    expression, at = "", 0
    for part in _TEMPLATE_PART.finditer(template):
        literal = template[at : part.start()]
        if part[1]:
            expression += f"{re.escape(literal)}(?P<{part[1]}>[^/]+)"
        else:
            expression += f"{re.escape(literal.removesuffix('/'))}(?P<rest_>(?:/.*)?)"
        at = part.end()
    return re.compile(expression + re.escape(template[at:]), re.DOTALL)


def _filled(template: str, found: re.Match[str]) -> str:
    filled = _TEMPLATE_PART.sub(lambda part: found[part[1]] if part[1] else "", template)
    if not template.endswith("**"):
        return filled
    return filled.removesuffix("/") + found["rest_"] or "/"


def _changed_query(query: str, rules: FieldRules) -> str:
    renamed = dict(rules.rename)
    dropped = {*rules.remove, *(name for name, _ in rules.set)}
    pairs = []
    for pair in query.split("&") if query else []:
        name, mark, value = pair.partition("=")
        plain = unquote_plus(name)
        new = renamed.get(plain, plain)
        if new not in dropped:
            pairs.append((name if new == plain else quote_plus(new)) + mark + value)
    pairs += [f"{quote_plus(name)}={quote_plus(value)}" for name, value in rules.set]
    return "&".join(pairs)


def _changed_fields(fields: Fields, rules: FieldRules) -> Fields:
    renamed = {old.lower(): new for old, new in rules.rename}
    dropped = {name.lower() for name in (*rules.remove, *(name for name, _ in rules.set))}
    kept = ((renamed.get(name.lower(), name), value) for name, value in fields)
    return (*((name, value) for name, value in kept if name.lower() not in dropped), *rules.set)


def _session_to_backend(request: Request, rules: SessionRules) -> Request:
    """What the client says of who it is, as the backend expects it. A bearer token wins over a cookie."""
    bearer = _bearer(request)
    if rules.clients == "cookie":
        token = request.cookie(rules.cookie)
        request = request.without_cookie(rules.cookie)
        if token and request.header("authorization") is None and _TOKEN68.fullmatch(token):
            return request.adding_header("Authorization", f"Bearer {token}")
        return request
    if bearer is None:
        return request
    return request.without_header("Authorization").with_cookie(rules.cookie, bearer)


def _session_to_client(answer: Answer, rules: SessionRules) -> Answer:
    """A session that begins with this answer, as the client expects to hear of it."""
    if rules.token is None or not answer.is_json:
        return answer
    if rules.clients == "cookie":
        token = value_at(read(answer.body), rules.token)
        if not isinstance(token, str) or not _TOKEN68.fullmatch(token) or answer.set_cookie(rules.cookie):
            return answer
        secure = "; Secure" if rules.secure else ""
        cookie = f"{rules.cookie}={token}; Path=/; HttpOnly; SameSite=Lax{secure}"
        return answer.adding_header("Set-Cookie", cookie)
    token = answer.set_cookie(rules.cookie)
    if not token:
        return answer
    value = read(answer.body)
    put_at(value, rules.token, token)
    return replace(answer.without_set_cookie(rules.cookie), body=write(value).encode())


def _bearer(request: Request) -> str | None:
    scheme, _, token = (request.header("authorization") or "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and _TOKEN68.fullmatch(token) else None
