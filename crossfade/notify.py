"""Telling the service manager that started us how we are (systemd's notification protocol).

One datagram per message to the socket named in NOTIFY_SOCKET; without the variable nothing happens.
The reload messages are those of `Type=notify-reload`.
"""

from __future__ import annotations

import os
import socket
import time


def ready(status: str) -> None:
    _notify(f"READY=1\nSTATUS={status}")


def reloading() -> None:
    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    _notify("STOPPING=1")


def _notify(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.setblocking(False)
            sock.sendto(message.encode(), address)
        except OSError:
            # A service manager that does not listen is no reason to stop serving.
            return
