"""nginx, HAProxy and Crossfade behind one interface, each as transparent as its configuration allows.

Each proxy is one foreground process with one event loop and several *lanes*: a listening port and a
scripted backend of its own. The listening sockets are bound here and inherited by the process, so no
port can be lost between choosing and using it. Every process dies with its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.differential.wire import Backend, Lane

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LIMIT_BODY = 1_000_000
"""The request body limit of Crossfade and nginx here; HAProxy has none."""
ROOT = Path(__file__).resolve().parents[2]
LIBC = ctypes.CDLL(None)


@dataclass(slots=True)
class Proxy:
    """A running proxy: its lanes, its version, and the process to look after."""

    name: str
    version: str
    process: subprocess.Popen[bytes]
    log: Path
    lanes: list[Lane] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Kind:
    """How to recognise and start one proxy: `command` writes what it needs into the folder given."""

    name: str
    program: str
    version: tuple[str, str]
    """The argument that makes it print its version, and where the version stands in that."""
    command: Callable[[str, Path, list[socket.socket], list[int]], list[str]]
    environment: Callable[[list[socket.socket]], dict[str, str]] = lambda _: {}


@contextlib.asynccontextmanager
async def running(kind: Kind, lanes: int) -> AsyncIterator[Proxy]:
    """Start the proxy with so many lanes, wait until each answers, and end it afterwards."""
    program, version = program_of(kind), version_of(kind)
    assert program
    assert version
    backends = [Backend() for _ in range(lanes)]
    sockets = [listening() for _ in range(lanes)]
    with tempfile.TemporaryDirectory(prefix="xf-") as folder:
        for backend in backends:
            await backend.start()
        process, log = launch(kind, program, folder, sockets, backends)
        proxy = Proxy(kind.name, version, process, log)
        for sock, backend in zip(sockets, backends, strict=True):
            proxy.lanes.append(Lane(sock.getsockname()[1], backend))
            sock.close()
        try:
            await ready(proxy)
            yield proxy
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, 5)
            process.kill()
            process.wait()
            for backend in backends:
                await backend.stop()


def launch(
    kind: Kind, program: str, folder: str, sockets: list[socket.socket], backends: list[Backend]
) -> tuple[subprocess.Popen[bytes], Path]:
    """The process, and the file that takes what it writes."""
    log = Path(folder) / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            kind.command(program, Path(folder), sockets, [backend.port for backend in backends]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | kind.environment(sockets),
            pass_fds=[sock.fileno() for sock in sockets],
            preexec_fn=die_with_parent,  # noqa: PLW1509 -- one system call, no lock is taken
        )
    return process, log


async def ready(proxy: Proxy) -> None:
    for lane in proxy.lanes:
        lane.backend.begin(())
        for _ in range(3):  # its timeouts are short, and the machine may stand still for longer
            unlike = await lane.barrier(20.0)
            if not unlike:
                break
        else:
            raise RuntimeError(f"{proxy.name} did not start: {unlike!r}\n{proxy.log.read_text()}")


def listening() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(256)
    return sock


def die_with_parent() -> None:
    LIBC.prctl(1, signal.SIGKILL)


def program_of(kind: Kind) -> str | None:
    """Debian's nginx and HAProxy are in a folder that is not on everybody's PATH."""
    return shutil.which(kind.program, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")


def version_of(kind: Kind) -> str | None:
    """The installed version, or None when there is none."""
    program = program_of(kind)
    if program is None:
        return None
    argument, pattern = kind.version
    done = subprocess.run([program, argument], capture_output=True, text=True, check=True)
    match = re.search(pattern, done.stdout + done.stderr)
    return match[1] if match else None


# nginx -----------------------------------------------------------------------------------------------

NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;
events { worker_connections 1024; }
http {
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u;
  scgi_temp_path s; default_type ''; underscores_in_headers on; ignore_invalid_headers off; merge_slashes off;
  large_client_header_buffers 4 32k; proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 64k;
  client_max_body_size %d; client_header_timeout 1s; client_body_timeout 1s; keepalive_timeout 2s;
  lingering_close on; lingering_timeout 1s; lingering_time 1s; reset_timedout_connection off;
  proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off; proxy_ignore_client_abort on;
  proxy_next_upstream off; proxy_read_timeout 1s; proxy_redirect off; proxy_pass_header Server;
  proxy_pass_header Date; proxy_pass_header X-Pad;
  proxy_ignore_headers X-Accel-Redirect X-Accel-Expires X-Accel-Limit-Rate X-Accel-Buffering X-Accel-Charset;
  map $http_upgrade $connection_field { default upgrade; '' ''; }
  proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection $connection_field;
%s}
"""

NGINX_LANE = """
  upstream b%(n)d { server 127.0.0.1:%(backend)d max_fails=0; keepalive 8; }
  server { listen 127.0.0.1:%(port)d; location / { proxy_pass http://b%(n)d; } }
"""


def nginx_command(program: str, folder: Path, sockets: list[socket.socket], backends: list[int]) -> list[str]:
    lanes = "".join(
        NGINX_LANE % {"n": n, "port": sock.getsockname()[1], "backend": backend}
        for n, (sock, backend) in enumerate(zip(sockets, backends, strict=True))
    )
    user = "user root;" if os.geteuid() == 0 else ""  # its own user may not enter our folder
    (folder / "nginx.conf").write_text(user + NGINX % (LIMIT_BODY, lanes))
    return [program, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]


NGINX_KIND = Kind(
    "nginx",
    "nginx",
    ("-v", r"nginx/([0-9.]+)"),
    nginx_command,
    lambda sockets: {"NGINX": "".join(f"{sock.fileno()};" for sock in sockets)},
)

# HAProxy ---------------------------------------------------------------------------------------------

HAPROXY = """
global
  nbthread 1
  tune.bufsize 65536
  tune.http.maxhdr 250
defaults
  mode http
  retries 0
  option http-keep-alive
  http-reuse always
  timeout connect 1s
  timeout client 1s
  timeout server 1s
  timeout http-request 1s
  timeout http-keep-alive 2s
  timeout tunnel 2s
"""

HAPROXY_LANE = """
frontend f%(n)d
  bind fd@%(fd)d
  default_backend b%(n)d
backend b%(n)d
  server s 127.0.0.1:%(backend)d
"""


def haproxy_command(
    program: str, folder: Path, sockets: list[socket.socket], backends: list[int]
) -> list[str]:
    lanes = "".join(
        HAPROXY_LANE % {"n": n, "fd": sock.fileno(), "backend": backend}
        for n, (sock, backend) in enumerate(zip(sockets, backends, strict=True))
    )
    (folder / "haproxy.cfg").write_text(HAPROXY + lanes)
    return [program, "-db", "-f", str(folder / "haproxy.cfg")]


HAPROXY_KIND = Kind(
    "HAProxy",
    "haproxy",
    ("-v", r"version ([0-9.]+)"),
    haproxy_command,
)

# Crossfade -------------------------------------------------------------------------------------------


def crossfade_command(_: str, __: Path, sockets: list[socket.socket], backends: list[int]) -> list[str]:
    pairs = [f"{sock.fileno()}:{backend}" for sock, backend in zip(sockets, backends, strict=True)]
    return [sys.executable, "-m", "tests.differential.crossfade_process", *pairs]


CROSSFADE_KIND = Kind("Crossfade", sys.executable, ("-V", r"Python ([0-9.]+)"), crossfade_command)
