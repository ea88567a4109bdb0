"""What a right file becomes."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

from crossfade.settings import Address, Databases, SecretUrl, Settings, diff_for_reload, load
from flags.model import AdapterUse, Route, Side
from legacy_adapter.declared import Declaration, ErrorRules, FieldRules, SessionRules
from legacy_adapter.shape import ShapeRules
from proxy.config import (
    AccessLog,
    Forwarding,
    Limits,
    ListenTls,
    ProxyConfig,
    Target,
    TargetTls,
    Timeouts,
    TokenKey,
    Tokens,
)
from tests.settings.test_bad_files import TARGETS

EVERYTHING = """\
listen: ["0.0.0.0:8080", "[::]:8080", "localhost:8443"]
admin: {listen: "[::1]:8081"}
workers: 3
store: "postgresql://crossfade:${PASSWORD}@db.example/crossfade?application_name=x"
bus: file:secrets/bus
data_dir: state
targets:
  legacy:
    url: http://legacy.example
    host: shop.example
    pool: &pool {max_connections: 10, max_waiting: 20, wait_timeout: 1, connect_timeout: 0.5, idle_timeout: 4}
  new:
    url: "https://[2001:db8::1]:8443/"
    tls: {ca: ca.pem, server_name: new.example, verify: true}
    pool:
      <<: *pool
      max_waiting: 0
routes:
  - flag: items.read
    match: {methods: [GET, HEAD], path: "/api/items/{id}", host: "*.Shop.example"}
    target: new
    adapter: {legacy: theirs, new: session, on_failure: untranslated}
  - {flag: rest, match: {path: "/**"}, adapter: {new: session}}
timeouts:
  {header: 1, body_idle: 2, keepalive: 3, response: 4, response_idle: 5, write_idle: 6, tunnel_idle: 7,
   expect: 0.5, drain: 8}
limits: {head_bytes: 8192, target_bytes: 4096, headers: 50, body_bytes: 1048576, connections: 7,
  min_body_rate: 0, translated_bytes: 2048}
forwarding: {trusted: [10.0.0.0/8, "::1"], x_forwarded: false, forwarded: yes, via: edge}
tls: {cert: /etc/tls/cert.pem, key: "${KEYS}/key.pem"}
proxy_protocol: ${SPEAKS_PROXY}
access_log: {path: logs/access.log, sample: 1}
adapters:
  session:
    path: {"/api/{id}/**": "/v2/{id}/**"}
    query: {rename: {a: b}, remove: [c], set: {d: "e f"}}
    request:
      headers: {rename: {X-A: X-B}, remove: [X-C], set: {X-D: "${PASSWORD}"}}
      body: {rename: {a.*.b: c.*.d}, remove: [e], convert: {f: number}, set: {g.h: 1}}
    answer:
      headers: {remove: [X-E]}
      body: {convert: {a: text}}
    errors: {body: {remove: [b]}, status: {422: 400}}
    session: {clients: bearer, cookie: sid, token: a.token, secure: true}
jwt:
  header: X-Token
  keys: [{algorithm: HS256, key: "0123456789abcdef0123456789-${PASSWORD}", id: one}]
  issuer: us
  audience: them
code: migration.py
data:
  legacy: {url: "mysql://u:hunter2@h/shop"}
  new: {url: "postgresql://h/shop?password=hunter2&sslmode=require"}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "crossfade.yaml"
    path.write_text(text)
    return path


def everything(folder: Path) -> Settings:
    (folder / "secrets").mkdir()
    (folder / "secrets" / "bus").write_text("redis://:hunter2@h:6379/0\n")
    environ = {"PASSWORD": "hunter2", "KEYS": "keys", "SPEAKS_PROXY": "true"}
    return load(written(folder, EVERYTHING), environ)


def test_every_key_arrives_where_it_belongs(tmp_path: Path) -> None:
    assert everything(tmp_path) == Settings(
        listen=(Address("0.0.0.0", 8080), Address("::", 8080), Address("127.0.0.1", 8443)),
        admin=Address("::1", 8081),
        workers=3,
        data_dir=tmp_path / "state",
        routes=(
            Route(
                "items.read",
                "/api/items/{id}",
                frozenset({"GET", "HEAD"}),
                "*.shop.example",
                Side.NEW,
                (AdapterUse(Side.LEGACY, "theirs", True), AdapterUse(Side.NEW, "session", True)),
            ),
            Route("rest", "/**", adapters=(AdapterUse(Side.NEW, "session"),)),
        ),
        store=SecretUrl("postgresql://crossfade:hunter2@db.example/crossfade?application_name=x"),
        bus=SecretUrl("redis://:hunter2@h:6379/0"),
        code=tmp_path / "migration.py",
        data=Databases(
            SecretUrl("mysql://u:hunter2@h/shop"),
            SecretUrl("postgresql://h/shop?password=hunter2&sslmode=require"),
        ),
        proxy=ProxyConfig(
            targets={
                Side.LEGACY: Target("legacy.example", 80, None, "shop.example", 10, 20, 1.0, 0.5, 4.0),
                Side.NEW: Target(
                    "2001:db8::1",
                    8443,
                    TargetTls(str(tmp_path / "ca.pem"), "new.example", True),
                    None,
                    10,
                    0,
                    1.0,
                    0.5,
                    4.0,
                ),
            },
            timeouts=Timeouts(1, 2, 3, 4, 5, 6, 7, 0.5, 8),
            limits=Limits(8192, 4096, 50, 1048576, 7, 0, 2048),
            forwarding=Forwarding((ip_network("10.0.0.0/8"), ip_network("::1")), False, True, "edge"),
            listen_tls=ListenTls("/etc/tls/cert.pem", str(tmp_path / "keys" / "key.pem")),
            proxy_protocol=True,
            access_log=AccessLog(str(tmp_path / "logs" / "access.log"), 1.0),
            tokens=Tokens(
                "x-token", (TokenKey("HS256", "0123456789abcdef0123456789-hunter2", "one"),), "us", "them"
            ),
            adapters=(
                (
                    "session",
                    Declaration(
                        paths=(("/api/{id}/**", "/v2/{id}/**"),),
                        query=FieldRules((("a", "b"),), ("c",), (("d", "e f"),)),
                        request_headers=FieldRules((("X-A", "X-B"),), ("X-C",), (("X-D", "hunter2"),)),
                        request_json=ShapeRules(
                            (("a.*.b", "c.*.d"),), ("e",), (("f", "number"),), (("g.h", 1),)
                        ),
                        answer_headers=FieldRules(remove=("X-E",)),
                        answer_json=ShapeRules(convert=(("a", "text"),)),
                        errors=ErrorRules(ShapeRules(remove=("b",)), ((422, 400),)),
                        session=SessionRules("bearer", "sid", "a.token", True),
                    ),
                ),
            ),
        ),
    )


def test_what_is_left_out_is_the_default_of_the_data_plane(tmp_path: Path) -> None:
    settings = load(written(tmp_path, TARGETS), {})
    assert settings == Settings(
        listen=(Address("127.0.0.1", 8080),),
        admin=Address("127.0.0.1", 8081),
        workers=min(4, len(os.sched_getaffinity(0))),
        data_dir=tmp_path / ".crossfade",
        routes=(),
        proxy=ProxyConfig({Side.LEGACY: Target("127.0.0.1", 9001), Side.NEW: Target("127.0.0.1", 9002)}),
    )
    sections = "admin:\nroutes:\ntimeouts:\nlimits:\nforwarding:\naccess_log:\n"
    assert load(written(tmp_path, TARGETS + sections), {}) == settings
    assert load(written(tmp_path, TARGETS + "store: embedded\nbus: embedded\n"), {}) == settings


def test_no_secret_is_printed(tmp_path: Path) -> None:
    settings = everything(tmp_path)
    assert "hunter2" not in repr(settings)
    assert "db.example" in repr(settings)
    assert str(settings.store) == "postgresql://***@db.example/crossfade?application_name=x"
    assert settings.data is not None
    assert str(settings.data.new) == "postgresql://h/shop?password=***&sslmode=require"


def test_a_relative_file_is_relative_to_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    path = written(tmp_path / "etc", TARGETS + "data_dir: ../state\n")
    relative = Path(os.path.relpath(path))
    assert load(relative, {}).data_dir.resolve() == tmp_path / "state"


def test_a_dollar_sign_can_be_written(tmp_path: Path) -> None:
    assert load(written(tmp_path, TARGETS + 'data_dir: "/$${A}$/$b"\n'), {}).data_dir == Path("/${A}$/$b")


def test_the_system_may_choose_the_ports(tmp_path: Path) -> None:
    text = TARGETS + "listen: [127.0.0.1:0, 127.0.0.1:0]\nadmin: {listen: 127.0.0.1:0}\n"
    settings = load(written(tmp_path, text), {})
    assert {*settings.listen, settings.admin} == {Address("127.0.0.1", 0)}


def test_the_log_can_be_switched_off(tmp_path: Path) -> None:
    assert load(written(tmp_path, TARGETS + "access_log: {path: off}\n"), {}).proxy.access_log.path is None
    assert load(written(tmp_path, TARGETS + 'access_log: {path: "-"}\n'), {}).proxy.access_log.path == "-"


def test_a_reload_cannot_move_sockets_and_state(tmp_path: Path) -> None:
    old = load(written(tmp_path, TARGETS), {})
    new = replace(
        old,
        listen=(Address("127.0.0.1", 8090),),
        admin=Address("127.0.0.1", 8091),
        data_dir=tmp_path / "elsewhere",
        workers=old.workers + 1,
        routes=(Route("rest", "/**"),),
        proxy=replace(old.proxy, proxy_protocol=True, listen_tls=ListenTls("a", "b")),
    )
    assert diff_for_reload(old, new) == ["listen", "admin.listen", "data_dir"]
    assert diff_for_reload(new, new) == []
