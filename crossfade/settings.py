"""Settings: `crossfade.yaml` read once, at the edge, into frozen values.

`load` returns `Settings` or raises `SettingsError` with everything that is wrong, each with its line.
`load_to_run` reads certificates and keys besides, `check` looks at ports and targets too.
`diff_for_reload` names what a reload cannot change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

import yaml
from pydantic import ValidationError

from crossfade import users_code
from crossfade.project import Project
from crossfade.settings_file import Document, Loc, Problem, read_document, spell
from crossfade.settings_form import (
    AdapterForm,
    Address,
    DataForm,
    FieldRulesForm,
    FileForm,
    JsonRulesForm,
    RouteForm,
    SecretUrl,
    Section,
    Server,
    ShadowForm,
    TargetForm,
    TargetTlsForm,
    TargetUrl,
    section_in,
)
from crossfade.settings_routes import unreached
from crossfade.settings_world import tls_problems, warnings_from_the_world
from dualwrite.capture import Way
from dualwrite.mapping import InvalidMappingError, qualified_name
from flags.model import AdapterUse, Route, Side, UnsafeMirror
from legacy_adapter.declared import Declaration, ErrorRules, FieldRules, SessionRules
from legacy_adapter.shape import ShapeRules
from proxy.claims import BadKeyError, check_key
from proxy.config import (
    AccessLog,
    Forwarding,
    HoldLimits,
    Limits,
    ListenTls,
    Mirroring,
    ProxyConfig,
    Target,
    TargetTls,
    Timeouts,
    TokenKey,
    Tokens,
)
from shadow import openapi
from shadow.openapi import Operation

__all__ = [
    "Address", "CheckReport", "Cutover", "Databases", "Problem", "SecretUrl", "Server", "Settings",
    "SettingsError", "check", "diff_for_reload", "load", "load_to_run",
]  # fmt: skip

MOST_WORKERS_BY_DEFAULT = 4


@dataclass(frozen=True, slots=True)
class Databases:
    """The two databases of the data half, for `crossfade sync` and `crossfade data`."""

    legacy: SecretUrl
    new: SecretUrl
    name: str = ""
    """What streams are named by, and with them slots and publications; empty: by their direction alone."""
    legacy_way: Way = Way.STREAM
    """How legacy is read."""
    new_way: Way = Way.STREAM
    run_here: bool = True
    """Whether processes of this instance work on streams that people desire to run, or leave it to others."""
    copy_rows_per_second: int = 0
    """The most rows that are copied; 0 sets no bound."""

    @property
    def ways(self) -> dict[Side, Way]:
        return {Side.LEGACY: self.legacy_way, Side.NEW: self.new_way}


@dataclass(frozen=True, slots=True)
class Cutover:
    """What moves to the other side in one step: these flags' requests, and the authority over these rows."""

    name: str
    flags: tuple[str, ...]
    tables: tuple[str, ...] = ()
    """Of legacy; none are all that `migration.py` maps."""
    own_writes: bool = False
    """Whether sessions that have written read from legacy until new has it, too."""
    max_lag_ms: int | None = None
    """How far new may be behind for reads to go there."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """What becomes of pairs of answers behind the mirror, whose own bounds are `ProxyConfig.mirror`."""

    inspect: float = 10.0
    """Pairs that differ and are looked at closer, a second and per worker."""
    compare_here: bool = True
    """Whether the control process compares; else only `crossfade compare` does."""
    keep_days: int = 14
    operations: tuple[Operation, ...] = ()
    """Of the OpenAPI document, if there is one."""
    redact_also: tuple[str, ...] = ()
    """Fields, or JSON paths, that are secret besides those known as such."""
    redact_never: tuple[str, ...] = ()
    redact_emails: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `crossfade.yaml` says. `repr` shows no password. Paths are absolute."""

    listen: tuple[Address, ...]
    admin: Address
    workers: int
    data_dir: Path
    proxy: ProxyConfig
    routes: tuple[Route, ...]
    warnings: tuple[str, ...] = ()
    """Lines about what is allowed but probably not meant, such as a route that is never reached."""
    store: Server = "embedded"
    """Where flags live. With `none` routes go where the configuration says."""
    bus: Server = "embedded"
    code: Path | None = None
    code_text: str = ""
    """What `code` holds, as `load_to_run` has read it."""
    data: Databases | None = None
    shadow: Shadow = field(default_factory=Shadow)
    cutovers: tuple[Cutover, ...] = ()


class SettingsError(Exception):
    """The file cannot be used. `problems` has everything that is wrong with it; `str`, a line for each."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `crossfade check` found. Problems forbid a start; warnings do not. One line each."""

    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    settings: Settings | None

    @property
    def exit_code(self) -> int:
        """0, or 2 if there are problems."""
        return 2 if self.problems else 0


def load(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read, substitute and check `path`; raises `SettingsError` with all problems, in order of lines."""
    return _settings_of(read_document(path, environ), path)


def load_to_run(path: Path, environ: Mapping[str, str]) -> Settings:
    """`load`, with the text of `code`; raises `SettingsError` too for files that no worker can start with."""
    document = read_document(path, environ)
    settings = _settings_of(document, path)
    problems = list(tls_problems(settings.proxy, document))
    if settings.code is not None:
        try:
            settings = replace(settings, code_text=users_code.read(settings.code))
        except users_code.UsersCodeError as error:
            problems += _unusable_code(error, document)
    if problems:
        raise SettingsError(tuple(problems))
    return settings


def check(path: Path, environ: Mapping[str, str] = os.environ) -> CheckReport:
    """`load`, and a look at the world. Opens files and sockets; takes a second for each silent target."""
    document = read_document(path, environ)
    try:
        settings = _settings_of(document, path)
    except SettingsError as error:
        return CheckReport(error.problems, (), None)
    problems = (*tls_problems(settings.proxy, document), *_code_problems(settings, document))
    world = warnings_from_the_world(settings, document)
    return CheckReport(problems, (*settings.warnings, *world), None if problems else settings)


def diff_for_reload(old: Settings, new: Settings) -> list[str]:
    """The changed keys that a reload leaves as they were: they need `crossfade restart`."""
    fixed = {
        "listen": (old.listen, new.listen),
        "admin.listen": (old.admin, new.admin),
        "data_dir": (old.data_dir, new.data_dir),
        "store": (old.store, new.store),
        "bus": (old.bus, new.bus),
    }
    return [key for key, (before, after) in fixed.items() if before != after]


def _settings_of(document: Document, path: Path) -> Settings:
    problems = list(document.problems)
    operations: tuple[Operation, ...] = ()
    if document.readable:
        try:
            form = FileForm.model_validate(document.root.value)
        except ValidationError as error:
            problems += _problems_of(error, document)
        else:
            problems += _clashes(form, document)
            problems += _unknown_adapters(form, document)
            problems += _unfit_keys(form, document)
            problems += _missing_sandbox(form, document)
            problems += _impossible_cutovers(form, document)
            operations, wrong = _operations(form, document, path)
            problems += wrong
    if problems:
        problems.sort(key=lambda problem: (problem.line or 0, problem.column or 0))
        raise SettingsError(tuple(problems))
    directory = Path(os.path.abspath(path)).parent
    routes = tuple(_route(route) for route in form.routes or ())
    return Settings(
        listen=tuple(form.listen),
        admin=form.admin.listen,
        workers=form.workers or min(MOST_WORKERS_BY_DEFAULT, _cpus()),
        data_dir=directory / form.data_dir,
        proxy=_proxy_config(form, directory),
        routes=routes,
        warnings=tuple(_route_warnings(routes, document)),
        store=form.store,
        bus=form.bus,
        code=directory / form.code if form.code else None,
        data=_databases(form.data) if form.data else None,
        shadow=Shadow(
            form.shadow.inspect,
            form.shadow.compare_here,
            form.shadow.keep_days,
            operations,
            tuple(form.shadow.redact.also),
            tuple(form.shadow.redact.never),
            form.shadow.redact.emails,
        ),
        cutovers=tuple(
            Cutover(
                name,
                tuple(one.flags),
                tuple(one.tables),
                one.read_your_writes,
                None if one.max_lag is None else round(one.max_lag * 1000),
            )
            for name, one in sorted(form.cutovers.items())
        ),
    )


def _problems_of(error: ValidationError, document: Document) -> Iterator[Problem]:
    for wrong in error.errors(include_url=False, include_input=False):
        loc: Loc = wrong["loc"]
        context = wrong.get("ctx", {})
        match wrong["type"]:
            case "wrong":
                at = (*loc, context["at"]) if "at" in context else loc
                problem = document.problem(at, context["found"], context["right"])
            case "extra_forbidden":
                problem = document.unknown_key(loc, _meant(str(loc[-1]), _keys_at(loc[:-1])))
            case "list_type":
                problem = document.problem(loc, None, "expected a list")
            case _:
                problem = document.problem(loc, None, f"expected otherwise: {wrong['msg']}")
        if problem is not None:
            yield problem


def _keys_at(loc: Loc) -> list[str]:
    """The keys of the section at `loc`."""
    section: type[Section] = FileForm
    for part in loc:
        if isinstance(part, str) and part in section.model_fields:  # else it is a name that the user chose
            section = section_in(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _meant(key: str, keys: list[str]) -> str:
    near = get_close_matches(key.lower(), keys, n=1)
    return f'did you mean "{near[0]}"?' if near else f"expected one of {', '.join(keys)}"


def _clashes(form: FileForm, document: Document) -> Iterator[Problem]:
    """Addresses that two would listen on, and targets that are this proxy itself."""
    taken: dict[Address, str] = {}
    for i, address in enumerate([*form.listen, form.admin.listen]):
        loc: Loc = ("listen", i) if i < len(form.listen) else ("admin", "listen")
        other = next((name for listener, name in taken.items() if _same_socket(listener, address)), None)
        if other:
            problem = document.problem(loc, f'"{address}"', f"expected another address than that of {other}")
            if problem is not None:
                yield problem
        taken[address] = spell(loc)
    for side, url in (("legacy", form.targets.legacy.url), ("new", form.targets.new.url)):
        if any(_reaches(url, listener) for listener in form.listen):
            right = "expected another address than that of listen: requests would go in circles"
            problem = document.problem(("targets", side, "url"), None, right)
            if problem is not None:
                yield problem


def _operations(
    form: FileForm, document: Document, path: Path
) -> tuple[tuple[Operation, ...], list[Problem]]:
    """What the OpenAPI document says, and why it cannot be used."""
    if form.shadow.openapi is None:
        return (), []
    file = Path(os.path.abspath(path)).parent / form.shadow.openapi
    try:
        return openapi.operations(yaml.safe_load(file.read_text(encoding="utf-8"))), []
    except OSError as error:
        why = error.strerror or str(error)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        why = " ".join(str(error).split())
    found = f'"{form.shadow.openapi}" ({why})'
    problem = document.problem(("shadow", "openapi"), found, "expected an OpenAPI document")
    return (), [] if problem is None else [problem]


def _unknown_adapters(form: FileForm, document: Document) -> Iterator[Problem]:
    """Routes whose adapter nobody declares. Code may bring others; whoever loads it looks for them."""
    if form.code is not None:
        return
    known = ", ".join(form.adapters) or "none, and no code"
    for i, route in enumerate(form.routes or ()):
        for side, name in (("legacy", route.adapter.legacy), ("new", route.adapter.new)):
            if name is not None and name not in form.adapters:
                right = f"expected one of adapters, which has {known}"
                problem = document.problem(("routes", i, "adapter", side), None, right)
                if problem is not None:
                    yield problem


def _code_problems(settings: Settings, document: Document) -> Iterator[Problem]:
    """Why the users' code cannot be used; it runs for this."""
    if settings.code is None:
        return
    try:
        project = users_code.load(settings.code, users_code.read(settings.code))
        declared = (name for name, _ in settings.proxy.adapters)
        users_code.check_names(project, declared, settings.routes, settings.code)
    except users_code.UsersCodeError as error:
        yield from _unusable_code(error, document)
    else:
        yield from _unmapped_tables(settings, project, document)


def _unmapped_tables(settings: Settings, project: Project, document: Document) -> Iterator[Problem]:
    """Tables of cutovers that the users' code carries nowhere; `cutover plan` would say it too late."""
    if not any(one.tables for one in settings.cutovers):
        return
    # Only who checks needs it, and workers start sooner without it.
    from dualwrite.mapped import towards  # noqa: PLC0415

    try:
        known = set(towards(Side.NEW, project.tables, project.follow_ups))
    except InvalidMappingError as error:
        wrong: list[tuple[Loc, str]] = [(("code",), f"expected mappings that can be meant: {error}")]
    else:
        right = f"expected a table that {settings.code} carries to new: {', '.join(sorted(known)) or 'none'}"
        wrong = [
            (("cutovers", one.name, "tables", i), right)
            for one in settings.cutovers
            for i, table in enumerate(one.tables)
            if qualified_name(table) not in known
        ]
    for loc, right in wrong:
        problem = document.problem(loc, None, right)
        if problem is not None:
            yield problem


def _unusable_code(error: users_code.UsersCodeError, document: Document) -> Iterator[Problem]:
    problem = document.problem(("code",), str(error), "expected a file that can be used")
    if problem is not None:
        yield problem


def _unfit_keys(form: FileForm, document: Document) -> Iterator[Problem]:
    for i, key in enumerate(form.jwt.keys or ()):
        try:
            check_key(TokenKey(key.algorithm, key.key, key.id))
        except BadKeyError as error:
            problem = document.problem(
                ("jwt", "keys", i, "key"), "no such key", f"expected otherwise: {error}"
            )
            if problem is not None:
                yield problem


def _impossible_cutovers(form: FileForm, document: Document) -> Iterator[Problem]:
    """Cutovers of what is not there, or of what another one moves already."""
    known = {route.flag for route in form.routes or ()}
    taken: dict[str, str] = {}
    for name, one in form.cutovers.items():
        wrong: list[tuple[Loc, str]] = []
        if form.data is None or form.code is None:
            wrong.append((("cutovers", name), "expected data: and code: too, which say what is to be moved"))
        if form.store == "none":
            wrong.append((("cutovers", name), "expected a store: without one nobody can move anything"))
        if not one.flags:
            wrong.append((("cutovers", name, "flags"), "expected at least one flag"))
        for i, flag in enumerate(one.flags):
            if flag not in known:
                right = f"expected a flag of routes: {', '.join(sorted(known)) or 'none'}"
                wrong.append((("cutovers", name, "flags", i), right))
            elif flag in taken:
                right = f"expected a flag that {taken[flag]} does not move"
                wrong.append((("cutovers", name, "flags", i), right))
            taken[flag] = name
        for loc, right in wrong:
            problem = document.problem(loc, None, right)
            if problem is not None:
                yield problem


def _missing_sandbox(form: FileForm, document: Document) -> Iterator[Problem]:
    for i, route in enumerate(form.routes or ()):
        if route.mirror.unsafe == UnsafeMirror.SANDBOX and form.shadow.sandbox is None:
            right = "expected shadow.sandbox with the url of that place"
            problem = document.problem(("routes", i, "mirror", "unsafe"), None, right)
            if problem is not None:
                yield problem


def _reaches(url: TargetUrl, listener: Address) -> bool:
    """Whether a connection to `url` surely ends at `listener`. Names and other machines are not looked up."""
    host = "127.0.0.1" if url.host == "localhost" else url.host
    here = host == listener.host or (host.startswith("127.") and listener.host == "0.0.0.0")  # noqa: S104
    return url.port == listener.port and (here or (host == "::1" and listener.host == "::"))


def _same_socket(one: Address, other: Address) -> bool:
    same_family = (":" in one.host) == (":" in other.host)
    any_host = {"0.0.0.0", "::"} & {one.host, other.host}  # noqa: S104 - a comparison, not a bind
    # Two times port 0 are two ports.
    return one.port == other.port != 0 and (one.host == other.host or (same_family and bool(any_host)))


def _databases(form: DataForm) -> Databases:
    legacy, new = form.legacy, form.new
    return Databases(
        legacy.url, new.url, form.name or "", Way(legacy.capture), Way(new.capture),
        form.run_here, form.copy_rows_per_second,
    )  # fmt: skip


def _proxy_config(form: FileForm, directory: Path) -> ProxyConfig:
    return ProxyConfig(
        targets={
            Side.LEGACY: _target(form.targets.legacy, directory),
            Side.NEW: _target(form.targets.new, directory),
        },
        timeouts=Timeouts(**dict(form.timeouts)),
        limits=Limits(**dict(form.limits)),
        forwarding=Forwarding(
            trusted=tuple(form.forwarding.trusted),
            x_forwarded=form.forwarding.x_forwarded,
            forwarded=form.forwarding.forwarded,
            via=form.forwarding.via,
        ),
        listen_tls=ListenTls(
            cert_file=str(directory / form.tls.cert),
            key_file=str(directory / form.tls.key),
        )
        if form.tls is not None
        else None,
        proxy_protocol=form.proxy_protocol,
        access_log=AccessLog(
            path=form.access_log.path
            if form.access_log.path in {None, "-"}
            else str(directory / str(form.access_log.path)),
            sample=form.access_log.sample,
        ),
        tokens=Tokens(
            header=form.jwt.header.lower(),
            keys=tuple(TokenKey(key.algorithm, key.key, key.id) for key in form.jwt.keys or ()),
            issuer=form.jwt.issuer,
            audience=form.jwt.audience,
        ),
        adapters=tuple((name, _declaration(adapter)) for name, adapter in form.adapters.items()),
        mirror=_mirroring(form.shadow, directory),
        holding=HoldLimits(form.hold.requests, form.hold.seconds),
    )


def _mirroring(form: ShadowForm, directory: Path) -> Mirroring:
    return Mirroring(
        in_flight=form.in_flight,
        held_bytes=form.held_bytes,
        body_bytes=form.body_bytes,
        rate=form.rate,
        connects=form.connects,
        deadline=form.deadline,
        busy_after=form.busy_after,
        busy_share=form.busy_share,
        ask_again=form.ask_again,
        ask_again_after=form.ask_again_after,
        inspect=form.inspect,
        sandbox=None if form.sandbox is None else _target(form.sandbox, directory),
    )


def _target(form: TargetForm, directory: Path) -> Target:
    tls = form.tls or TargetTlsForm()
    return Target(
        host=form.url.host,
        port=form.url.port,
        tls=TargetTls(
            ca_file=str(directory / tls.ca) if tls.ca else None,
            server_name=tls.server_name,
            verify=tls.verify,
        )
        if form.url.tls
        else None,
        host_header=form.host,
        **dict(form.pool),
    )


def _route(form: RouteForm) -> Route:
    return Route(
        flag=form.flag,
        path=form.match.path,
        methods=frozenset(form.match.methods or ()),
        host=form.match.host,
        side=form.target,
        adapters=tuple(
            AdapterUse(side, name, form.adapter.on_failure == "untranslated")
            for side, name in ((Side.LEGACY, form.adapter.legacy), (Side.NEW, form.adapter.new))
            if name is not None
        ),
        mirror_unsafe=None if form.mirror.unsafe is None else UnsafeMirror(form.mirror.unsafe),
        mirror_field=form.mirror.header or ("Idempotency-Key" if form.mirror.unsafe else ""),
        writes=form.writes,
    )


def _declaration(form: AdapterForm) -> Declaration:
    session = form.session
    return Declaration(
        paths=tuple(form.path.items()),
        query=_field_rules(form.query),
        request_headers=_field_rules(form.request.headers),
        request_json=_shape_rules(form.request.body),
        answer_headers=_field_rules(form.answer.headers),
        answer_json=_shape_rules(form.answer.body),
        errors=ErrorRules(_shape_rules(form.errors.body), tuple(form.errors.status.items())),
        session=None
        if session is None
        else SessionRules(session.clients, session.cookie, session.token, session.secure),
    )


def _field_rules(form: FieldRulesForm) -> FieldRules:
    return FieldRules(tuple(form.rename.items()), tuple(form.remove), tuple(form.set.items()))


def _shape_rules(form: JsonRulesForm) -> ShapeRules:
    return ShapeRules(
        tuple(form.rename.items()), tuple(form.remove), tuple(form.convert.items()), tuple(form.set.items())
    )


def _route_warnings(routes: tuple[Route, ...], document: Document) -> Iterator[str]:
    for i, j in unreached(routes):
        yield (
            f"{document.where(('routes', j))}: never reached; routes[{i}] (flag {routes[i].flag}) "
            "comes first and matches all of its requests"
        )
    first: dict[str, int] = {}
    for j, route in enumerate(routes):
        i = first.setdefault(route.flag, j)
        if routes[i].side is not route.side:
            yield (
                f"{document.where(('routes', j, 'target'))}: {route.side}, but routes[{i}] of the same flag "
                f"{route.flag} has {routes[i].side}; one flag will mean one side"
            )


def _cpus() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
