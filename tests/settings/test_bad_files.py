"""What is wrong with a file, word for word as the person who wrote it reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossfade.settings import SettingsError, load

TARGETS = """\
targets:
  legacy: {url: "http://127.0.0.1:9001"}
  new:    {url: "http://127.0.0.1:9002"}
"""

URL = "expected http://host:port or https://host:port"
TOP = (
    "listen, admin, workers, data_dir, targets, routes, timeouts, limits, forwarding, tls, proxy_protocol, "
    "access_log, adapters, jwt, shadow, store, bus, code, data, cutovers, hold"
)
PATH = 'expected a path from "/" on, each segment plain text or one {name}, with "**" only as the last'
HOST = "expected a host name without port, such as api.example.com or *.example.com"
FLAG = (
    "expected a flag's key (2 to 63 of a-z, 0-9, dot, underscore and hyphen, with a letter or digit first), "
    "such as items.read"
)
ADDRESS = "expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080"
DATABASE = "expected a URL such as postgresql://user:password@host/db"

CASES: dict[str, tuple[str, list[str]]] = {
    "an empty file lacks its targets": (
        "",
        [f":1: targets.legacy.url: found nothing; {URL}", f":1: targets.new.url: found nothing; {URL}"],
    ),
    "a list is no configuration": ("- a\n", [f":1: found a list; expected a mapping with keys of {TOP}"]),
    "all mistakes at once, in the order of lines": (
        TARGETS
        + """\
listne: 127.0.0.1:80
workers: many
timeouts:
  header: 10s
  heder: 3
limits: {head_bytes: 32k, headers: 2.5}
zzz: 1
""",
        [
            ':4: listne: found an unknown key; did you mean "listen"?',
            ':5: workers: found "many"; expected a whole number from 1 to 256, such as 2',
            ':7: timeouts.header: found "10s"; expected a number of seconds from 0.001 to 86400, such as 10',
            ':8: timeouts.heder: found an unknown key; did you mean "header"?',
            ':9: limits.head_bytes: found "32k"; '
            "expected a number of bytes from 1024 to 1048576, such as 32768",
            ":9: limits.headers: found 2.5; expected a whole number from 8 to 10000, such as 250",
            f":10: zzz: found an unknown key; expected one of {TOP}",
        ],
    ),
    "adapters": (
        TARGETS
        + """\
adapters:
  a:
    path: {/a: "/b/{id}"}
    query: {renam: {}, set: {a: 1}}
    request: {body: {rename: {a.*.b: c}, convert: {d: money}}}
    errors: {status: {200: 400}}
    session: {clients: token}
routes:
  - {flag: aa, match: {path: /a}, adapter: {new: b, on_failure: ignore}}
""",
        [
            ":6: adapters.a.path: found a mapping; expected path templates, from and to, such as "
            '{"/items/{id}": "/v2/articles/{id}"}, where the second uses no name that the first lacks',
            ':7: adapters.a.query.renam: found an unknown key; did you mean "rename"?',
            ":7: adapters.a.query.set: found a mapping; "
            'expected names with their values as text, such as {X-Api: "2"}',
            ":8: adapters.a.request.body.rename: found a mapping; expected JSON paths, from and to, "
            "with as many * on both sides, such as {items.*.login: items.*.name}",
            ":8: adapters.a.request.body.convert: found a mapping; expected JSON paths with one of "
            "number, text, boolean, such as {total: number}",
            ":9: adapters.a.errors.status: found a mapping; "
            "expected statuses from 400 to 599, from and to, such as {422: 400}",
            ":10: adapters.a.session.cookie: found nothing; expected the name of a cookie, such as sid",
            ':10: adapters.a.session.clients: found "token"; expected one of cookie, bearer',
            ':12: routes[0].adapter.on_failure: found "ignore"; expected one of refuse, untranslated',
        ],
    ),
    "an adapter that nobody has": (
        TARGETS + "adapters: {a: {}}\nroutes:\n  - {flag: aa, match: {path: /a}, adapter: {new: b}}\n",
        [':6: routes[0].adapter.new: found "b"; expected one of adapters, which has a'],
    ),
    "keys of tokens": (
        TARGETS
        + """\
jwt:
  keys:
    - {algorithm: none, key: x}
    - {algorithm: RS256}
""",
        [
            ':6: jwt.keys[0].algorithm: found "none"; expected one of RS256, RS384, RS512, PS256, PS384, '
            "PS512, ES256, ES384, ES512, EdDSA, HS256, HS384, HS512",
            ":7: jwt.keys[1].key: found something that is not shown; "
            "expected a PEM key or a secret, best as file:/path or ${NAME}",
        ],
    ),
    "keys that verify nothing": (
        TARGETS
        + """\
jwt:
  keys:
    - {algorithm: RS256, key: no PEM}
    - {algorithm: HS256, key: short}
""",
        [
            ":6: jwt.keys[0].key: found no such key; expected otherwise: a PEM key for RS256 is needed",
            ":7: jwt.keys[1].key: found no such key; "
            "expected otherwise: a secret of at least 32 bytes is needed",
        ],
    ),
    "cutovers": (
        TARGETS
        + """\
store: none
routes: [{flag: items, match: {path: /a}}]
cutovers:
  shop: {flags: [items, other]}
  again: {flags: [items], tables: ["a b"]}
  nothing: {flags: []}
""",
        [
            ":8: cutovers.again.tables: found a list; "
            "expected a list of legacy's tables, such as [users, shop.orders]"
        ],
    ),
    "a cutover with a name that no database would keep": (
        TARGETS + "cutovers:\n  " + "a" * 51 + ": {flags: [items]}\n",
        [
            ":4: cutovers: found a mapping; expected cutovers under names (2 to 50 of a-z, 0-9, dot, "
            "underscore and hyphen, with a letter or digit first), such as shop: {flags: [items]}"
        ],
    ),
    "cutovers of what is not there": (
        TARGETS
        + """\
store: none
routes: [{flag: items, match: {path: /a}}]
cutovers:
  shop: {flags: [items, other]}
  again: {flags: [items]}
""",
        [
            ":7: cutovers.shop: found a mapping; expected data: and code: too, which say what is to be moved",
            ":7: cutovers.shop: found a mapping; expected a store: without one nobody can move anything",
            ':7: cutovers.shop.flags[1]: found "other"; expected a flag of routes: items',
            ":8: cutovers.again: found a mapping; "
            "expected data: and code: too, which say what is to be moved",
            ":8: cutovers.again: found a mapping; expected a store: without one nobody can move anything",
            ':8: cutovers.again.flags[0]: found "items"; expected a flag that shop does not move',
        ],
    ),
    "routes": (
        TARGETS
        + """\
routes:
  - {flag: aa, match: {path: /a}, target: nwe}
  - flag: bb
    match:
      methods: GET
  - flag: "-"
    match: {methods: [get, CONNECT, "A B", 3], path: "a/**/b", host: "x:80"}
  - 5
  -
""",
        [
            ':5: routes[0].target: found "nwe"; expected one of legacy, new',
            f":7: routes[1].match.path: found nothing; {PATH}",
            ':8: routes[1].match.methods: found "GET"; expected a list such as [GET, HEAD], '
            "or no such key for any method",
            f':9: routes[2].flag: found "-"; {FLAG}',
            ':10: routes[2].match.methods[0]: found "get"; '
            "expected methods in upper case: they are compared exactly",
            ':10: routes[2].match.methods[1]: found "CONNECT"; '
            "expected another method: CONNECT is always refused",
            ':10: routes[2].match.methods[2]: found "A B"; expected an HTTP method, such as GET',
            ":10: routes[2].match.methods[3]: found 3; expected an HTTP method, such as GET",
            f':10: routes[2].match.path: found "a/**/b"; {PATH}',
            f':10: routes[2].match.host: found "x:80"; {HOST}',
            ":11: routes[3]: found 5; "
            "expected a mapping with keys of flag, match, target, adapter, mirror, writes",
            f":12: routes[4].flag: found nothing; {FLAG}",
            f":12: routes[4].match.path: found nothing; {PATH}",
        ],
    ),
    "a route of no method at all": (
        TARGETS + "routes:\n  - {flag: aa, match: {methods: [], path: /a}}\n",
        [
            ":5: routes[0].match.methods: found a list; expected a list such as [GET, HEAD], "
            "or no such key for any method"
        ],
    ),
    "addresses": (
        TARGETS + "listen: ['[::1]:80000', ':80', shop.example:80, 127.0.0.1]\nadmin: {listen: 8081}\n",
        [
            f':4: listen[0]: found "[::1]:80000"; {ADDRESS}',
            f':4: listen[1]: found ":80"; {ADDRESS}',
            f':4: listen[2]: found "shop.example:80"; {ADDRESS}',
            f':4: listen[3]: found "127.0.0.1"; {ADDRESS}',
            f":5: admin.listen: found 8081; {ADDRESS}",
        ],
    ),
    "no address to listen on": (
        TARGETS + "listen: []\n",
        [":4: listen: found a list; expected at least one address"],
    ),
    "one address is named without a position": (
        TARGETS + "listen: 8080\n",
        [f":4: listen: found 8080; {ADDRESS}"],
    ),
    "two listeners on one port": (
        TARGETS + "listen: [127.0.0.1:80, '0.0.0.0:80']\nadmin: {listen: 127.0.0.1:80}\n",
        [
            ':4: listen[1]: found "0.0.0.0:80"; expected another address than that of listen[0]',
            ':5: admin.listen: found "127.0.0.1:80"; expected another address than that of listen[0]',
        ],
    ),
    "a proxy in front of itself": (
        TARGETS + "listen: 0.0.0.0:9001\n",
        [
            ':2: targets.legacy.url: found "http://127.0.0.1:9001"; '
            "expected another address than that of listen: requests would go in circles"
        ],
    ),
    "target options": (
        """\
targets:
  legacy:
    url: http://h
    tls: {ca: x}
  new:
    url: https://h
    tls: {verify: maybe}
    host: "a b"
    pool: {max_connections: 0, wait_timeout: .nan, idle_timeout: true}
""",
        [
            ':3: targets.legacy.url: found "http://h"; expected https://..., because tls is given beside it',
            ':7: targets.new.tls.verify: found "maybe"; expected true or false',
            ':8: targets.new.host: found "a b"; expected a Host value, such as api.example.com',
            ":9: targets.new.pool.max_connections: found 0; "
            "expected a whole number from 1 to 65535, such as 256",
            ":9: targets.new.pool.wait_timeout: found NaN; "
            "expected a number of seconds from 0.001 to 86400, such as 5",
            ":9: targets.new.pool.idle_timeout: found true; "
            "expected a number of seconds from 0.001 to 86400, such as 15",
        ],
    ),
    "the rest of the sections": (
        TARGETS
        + """\
tls:
forwarding:
  trusted: [10.0.0.1/8, x]
  via: "a b"
  forwarded: 1
access_log: {sample: 5%}
code: x.txt
limits: {head_bytes: 2000, target_bytes: 5000}
proxy_protocol: v2
""",
        [
            ":4: tls.cert: found nothing; expected a path",
            ":4: tls.key: found nothing; expected a path",
            ':6: forwarding.trusted[0]: found "10.0.0.1/8"; '
            "expected an IP network without host bits: 10.0.0.0/8 is the network of it",
            ':6: forwarding.trusted[1]: found "x"; expected an IP address or network, such as 10.0.0.0/8',
            ':7: forwarding.via: found "a b"; expected a word for the Via field, such as crossfade',
            ":8: forwarding.forwarded: found 1; expected true or false",
            ':9: access_log.sample: found "5%"; expected a share from 0 to 1, such as 0.01',
            ':10: code: found "x.txt"; expected a Python file, such as migration.py',
            ":11: limits.target_bytes: found 5000; expected less than head_bytes, which is 2000",
            ':12: proxy_protocol: found "v2"; expected true or false',
        ],
    ),
    "what YAML 1.1 would turn into another number": (
        TARGETS + "workers: 1:30\nlimits: {headers: 0100}\ntimeouts: {header: 2024-01-01}\n",
        [
            ':4: workers: found "1:30"; expected a whole number from 1 to 256, such as 2',
            ':5: limits.headers: found "0100"; expected a whole number from 8 to 10000, such as 250',
            ':6: timeouts.header: found "2024-01-01"; '
            "expected a number of seconds from 0.001 to 86400, such as 10",
        ],
    ),
    "duplicate keys": (
        TARGETS + "workers: 2\ntimeouts: {header: 1, header: 2}\nworkers: 3\n",
        [
            ":5: timeouts.header: found the key a second time (first on line 5); expected every key once",
            ":6: workers: found the key a second time (first on line 4); expected every key once",
        ],
    ),
    "a mistake in an anchor is shown where it was made": (
        """\
targets:
  legacy: {url: "http://a", pool: &pool {max_waiting: few}}
  new:    {url: "http://b", pool: *pool}
""",
        [
            ':2: targets.legacy.pool.max_waiting: found "few"; '
            "expected a whole number from 0 to 1000000, such as 1024",
            ':2: targets.new.pool.max_waiting: found "few"; '
            "expected a whole number from 0 to 1000000, such as 1024",
        ],
    ),
    "databases and their passwords": (
        TARGETS
        + """\
store: mysql://u:hunter2@h/db
bus: hunter2
data:
  legacy: {url: "postgresql://u:hunter2@h:bad/db"}
  new: {url: "postgresql://u:hunter2@h/db"}
  old: {}
""",
        [
            ':4: store: found "mysql://..." (the rest is not shown); '
            'expected "embedded" or "none" or a URL such as postgresql://user:password@host/db',
            ":5: bus: found a text that is not shown; "
            'expected "embedded" or "none" or a URL such as redis://host:6379/0',
            f':7: data.legacy.url: found "postgresql://..." (the rest is not shown); {DATABASE}',
            ":9: data.old: found an unknown key; expected one of"
            " name, legacy, new, run_here, copy_rows_per_second",
        ],
    ),
    "streams and their names": (
        TARGETS
        + """\
data:
  name: Shop-1
  legacy: {url: "postgresql://h/db", capture: poll}
  new: {url: "postgresql://h/db"}
""",
        [
            ':5: data.name: found "Shop-1"; expected at most 40 small letters, digits and underscores,'
            " such as shop: slots are named by it",
            ':6: data.legacy.capture: found "poll"; expected one of stream, peek',
        ],
    ),
    "references": (
        TARGETS
        + """\
store: postgresql://u:${MISSING}@h/db
bus: ${WRONG
workers: ${SET}
data_dir: file:nowhere
tls: {cert: "${1}", key: "file:."}
""",
        [
            ':4: store: found "${MISSING}"; expected MISSING to be set in the environment',
            ':5: bus: found "${WRONG"; expected "${NAME}"',
            ':6: workers: found "${SET}" (its content is not shown); '
            "expected a whole number from 1 to 256, such as 2",
            ':7: data_dir: found "file:nowhere" (No such file or directory); expected a readable text file',
            ':8: tls.cert: found "${1}"; expected "${NAME}"',
            ':8: tls.key: found "file:." (not a regular file); expected a readable text file',
        ],
    ),
    "a tab": (
        "workers: 2\n\tfoo: 1\n",
        [
            ":2: found invalid YAML (found character '\\t' that cannot start any token); "
            "expected spaces, not tabs, for indentation"
        ],
    ),
    "a colon in plain text": (
        "listen: a: b\n",
        [
            ":1: found invalid YAML (mapping values are not allowed here); "
            'expected one "key: value" a line, and quotes around text with ": "'
        ],
    ),
    "a quote that nobody closes": (
        "workers: 1\nlisten: 'x\nadmin: {}\n",
        [":2: found invalid YAML (found unexpected end of stream); expected a closing quote"],
    ),
    "a reference within braces": (
        "targets: {legacy: {url: ${URL}}}\n",
        [
            ":1: found invalid YAML (expected ',' or '}', but got '{'); "
            'expected quotes around "${NAME}" where it stands within braces or brackets'
        ],
    ),
    "two documents": (
        "a: 1\n---\nb: 1\n",
        [":2: found invalid YAML (but found another document); expected one document in the file"],
    ),
    "mirroring": (
        TARGETS
        + """routes:
- {flag: aa, match: {path: /a}, mirror: {unsafe: dry_run}}
- {flag: bb, match: {path: /b}, mirror: {unsafe: dry_run, header: X-Dry-Run}}
- {flag: cc, match: {path: /c}, mirror: {unsafe: idempotency_key, header: "Key: 1"}}
- {flag: dd, match: {path: /d}, mirror: {header: X}}
- {flag: ee, match: {path: /e}, mirror: {unsafe: yes please}}
shadow: {in_flight: 0, ask_again: 2, redact: {also: phone}}
""",
        [
            ":5: routes[0].mirror.header: found nothing; expected the field that asks for a dry run, such as "
            '"X-Dry-Run: 1"',
            ':6: routes[1].mirror.header: found "X-Dry-Run"; '
            'expected the field that asks for a dry run, such as "X-Dry-Run: 1"',
            ':7: routes[2].mirror.header: found "Key: 1"; '
            "expected the name of the field with the key, such as Idempotency-Key",
            ':8: routes[3].mirror.header: found "X"; expected only with unsafe: dry_run or idempotency_key',
            ':9: routes[4].mirror.unsafe: found "yes please"; '
            "expected one of dry_run, sandbox, idempotency_key",
            ":10: shadow.in_flight: found 0; expected a whole number from 1 to 10000, such as 64",
            ":10: shadow.ask_again: found 2; expected a share from 0 to 1, such as 0.01",
            ':10: shadow.redact.also: found "phone"; expected a list of field names or JSON paths, such as '
            "[phone, $.user.birthday]",
        ],
    ),
    "an OpenAPI document that is none": (
        TARGETS + "routes: []\nshadow: {openapi: crossfade.yaml}\n",
        [
            ':5: shadow.openapi: found "crossfade.yaml" (openapi, with its version, is missing); '
            "expected an OpenAPI document",
        ],
    ),
    "a sandbox that is nowhere": (
        TARGETS + "routes: [{flag: aa, match: {path: /a}, mirror: {unsafe: sandbox}}]\n",
        [
            ':4: routes[0].mirror.unsafe: found "sandbox"; '
            "expected shadow.sandbox with the url of that place",
        ],
    ),
    "a tag": (
        TARGETS + "workers: !!python/name:os.system x\nlimits: !odd {}\n",
        [
            ":4: workers: found the tag tag:yaml.org,2002:python/name:os.system; expected no tag",
            ":5: limits: found the tag !odd; expected no tag",
        ],
    ),
    "a loop of aliases": (
        TARGETS + "listen: &a [*a]\n",
        [
            ":4: listen[0]: found an alias to what contains it; expected an alias to something before it",
        ],
    ),
    "a key that is no text": (
        TARGETS + "? [a]\n: 1\n",
        [":4: found a list or mapping as a key; expected plain text before the colon"],
    ),
    "depth": (
        "[" * 5000,
        [": found lists or mappings nested too deep; expected the form of docs/configuration.md"],
    ),
}


@pytest.mark.parametrize(("text", "lines"), CASES.values(), ids=CASES.keys())
def test_every_mistake_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, lines: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("crossfade.yaml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(Path("crossfade.yaml"), {"SET": "hunter2"})
    assert str(caught.value).splitlines() == [f"crossfade.yaml{line}" for line in lines]
    assert "hunter2" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("url", "found", "why"),
    [
        ("ftp://a", None, ""),
        ("127.0.0.1:80", None, ""),
        ("http://h:0", None, ""),
        ("http://h:99999", None, ""),
        ("http://[::1", None, ""),
        ("http://999.1.1.1", None, ""),
        ("http://a b", None, ""),
        ("http://h/api", None, ", with no path in it: requests are passed on under their own"),
        ("http://h?x=1", None, ", with no query in it: requests bring their own"),
        ("http://h#x", None, ", with no fragment in it: servers never see one"),
        (
            "http://u:hunter2@h",
            "http://***@h",
            ", with no user or password in it: clients bring their own credentials",
        ),
    ],
)
def test_what_a_target_url_may_not_be(tmp_path: Path, url: str, found: str | None, why: str) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(f'targets:\n  legacy: {{url: "{url}"}}\n  new: {{url: "http://n"}}\n')
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert str(caught.value) == f'{path}:2: targets.legacy.url: found "{found or url}"; {URL}{why}'


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b"a: 1\nb: \xff\n", ":2: found bytes that are not UTF-8; expected UTF-8 text"),
        (b"a: 1\nb: \x01\n", ":2: found the character #x0001; expected printable text"),
    ],
)
def test_a_file_that_is_no_text(tmp_path: Path, raw: bytes, line: str) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_bytes(raw)
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert str(caught.value) == f"{path}{line}"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert (
        str(caught.value)
        == f"{path}: found no readable file (No such file or directory); expected a YAML file"
    )


def test_a_problem_is_also_data(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(TARGETS + "routes:\n  - {flag: aa, match: {path: /a}, target: nwe}\n")
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    [problem] = caught.value.problems
    assert (problem.file, problem.line, problem.column) == (str(path), 5, 43)
    assert (problem.field, problem.found) == ("routes[0].target", '"nwe"')
