"""What the world says about settings that are right in themselves.

Files of TLS without which no worker can start are problems, like anything in the file itself. All
else is a line for each doubt. Nothing is changed: a port is bound and let go, a target is connected
to and left, a nameless file is made where state will be kept. Any of it may be different a second
later, so these are warnings.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flags.model import Side
from proxy.config import ListenTls, ProxyConfig, Target

if TYPE_CHECKING:
    from crossfade.settings import Settings
    from crossfade.settings_file import Document, Loc, Problem
    from crossfade.settings_form import Address

CONNECT_WITHIN = 1.0
"""Seconds that a target has to accept a connection."""

_Fault = tuple[str, str]
"""What was found, and what would be right."""


def warnings_from_the_world(settings: Settings, document: Document) -> Iterator[str]:
    """Lines of the form `file:line: field: doubt`. Waits `CONNECT_WITHIN` for each address of a target."""
    proxy = settings.proxy
    fault = _folder_fault(settings.data_dir)
    if fault:
        yield f"{document.where(('data_dir',))}: {fault}"
    if proxy.access_log.path not in {None, "-"}:
        fault = _folder_fault(Path(str(proxy.access_log.path)).parent, must_exist=True)
        if fault:
            yield f"{document.where(('access_log', 'path'))}: {fault}"
    for i, address in enumerate(settings.listen):
        fault = _port_fault(address)
        if fault:
            yield f"{document.where(('listen', i))}: {fault}"
    fault = _port_fault(settings.admin)
    if fault:
        yield f"{document.where(('admin', 'listen'))}: {fault}"
    for side in Side:
        fault = _reach_fault(proxy.targets[side])
        if fault:
            yield f"{document.where(('targets', side.value, 'url'))}: {fault}"


def tls_problems(proxy: ProxyConfig, document: Document) -> Iterator[Problem]:
    """Certificates, keys and authorities with which a worker would not start."""
    faults: list[tuple[Loc, _Fault]] = []
    if proxy.listen_tls is not None:
        key, fault = _listen_tls_fault(proxy.listen_tls)
        if fault:
            faults.append((("tls", key), fault))
    for side in Side:
        target_fault = _target_tls_fault(proxy.targets[side])
        if target_fault:
            faults.append((("targets", side.value, "tls", "ca"), target_fault))
    for loc, (found, right) in faults:
        problem = document.problem(loc, found, right)
        if problem is not None:
            yield problem


def _listen_tls_fault(tls: ListenTls) -> tuple[str, _Fault | None]:
    """Which of `cert` and `key` is at fault, and why they make no TLS context; None when they do."""
    for key, file in (("cert", tls.cert_file), ("key", tls.key_file)):
        try:
            Path(file).read_bytes()
        except OSError as error:
            return key, _unreadable(file, error)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password to give, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(tls.cert_file, tls.key_file, password=_no_password)
    except _EncryptedKeyError:
        return "key", (f'"{tls.key_file}" (encrypted)', "expected a key without a password")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return "key", (f'"{tls.key_file}"', f"expected the key of {tls.cert_file}")
        return "cert", (
            f'"{tls.cert_file}" and "{tls.key_file}"',
            "expected a certificate and its key in PEM form",
        )
    return "cert", None


def _unreadable(file: str, error: OSError) -> _Fault:
    return f'"{file}" ({error.strerror})', "expected a readable file"


class _EncryptedKeyError(Exception):
    pass


def _no_password() -> str:
    raise _EncryptedKeyError


def _target_tls_fault(target: Target) -> _Fault | None:
    if target.tls is None or target.tls.ca_file is None:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(target.tls.ca_file)
    except ssl.SSLError:
        return f'"{target.tls.ca_file}"', "expected certificates in PEM form"
    except OSError as error:
        return _unreadable(target.tls.ca_file, error)
    return None


def _folder_fault(folder: Path, *, must_exist: bool = False) -> str | None:
    """Whether files can be made in `folder`, or in the place where it would be made."""
    place = folder
    while not must_exist and not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"cannot write in {place}: {error.strerror}"


def _port_fault(address: Address) -> str | None:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((address.host, address.port))
    except OSError as error:
        return f"cannot listen on {address}: {error.strerror} (expected if Crossfade runs already)"
    return None


def _reach_fault(target: Target) -> str | None:
    try:
        with socket.create_connection((target.host, target.port), CONNECT_WITHIN):
            return None
    except TimeoutError:
        return f"no answer from {target.host} port {target.port} within {CONNECT_WITHIN:g} s"
    except OSError as error:
        return f"cannot connect to {target.host} port {target.port}: {error.strerror or error}"
