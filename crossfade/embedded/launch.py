"""Become a server that PostgreSQL's programs agree to run as, then exec one of them.

Run as a script, `python launch.py IDENTITY PARENT PROGRAM ARG…`; `command` makes that line.
PostgreSQL refuses to run as root, so for root there are two identities:

* `namespace`: a user namespace in which root of outside is an ordinary user. Nothing on disk changes
  hands. Some containers forbid it.
* `UID:GID`: an existing user without rights.

An ordinary user runs as `self`. What is started so leads a session of its own and is interrupted
(SIGINT) when the thread that started it ends; the demo starts its other programs so too.

This is a program and not a `preexec_fn`, because Python code between fork and exec can deadlock in a
process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
REFUSED = 77
"""Exit code: this machine does not grant the identity."""


def command(identity: str, program: str, *arguments: str) -> list[str]:
    """The command line that starts `program` as that identity, tied to the life of this process."""
    return [sys.executable, "-I", "-S", __file__, identity, str(os.getpid()), program, *arguments]


def main(identity: str, parent: str, program: str, *arguments: str) -> None:
    try:
        _become(identity)
    except OSError as error:
        sys.stderr.write(f"{identity}: {error}\n")
        sys.exit(REFUSED)
    _hand_over_input()
    # A session of its own: Ctrl-C in a terminal is for us, we stop the server when its users have gone.
    os.setsid()
    # After the change of identity, which would clear it.
    _die_with(int(parent))
    os.execv(program, [program, *arguments])  # noqa: S606


def _become(identity: str) -> None:
    if identity == "self":
        return
    if identity == "namespace":
        libc = ctypes.CDLL(None, use_errno=True)
        uid, gid = os.geteuid(), os.getegid()
        if libc.unshare(CLONE_NEWUSER):
            raise OSError(ctypes.get_errno(), "unshare")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"65534 {uid} 1"),
            ("gid_map", f"65534 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        return
    uid, gid = map(int, identity.split(":"))
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _hand_over_input() -> None:
    """Copy what stands on standard input into a pipe that belongs to the new identity.

    initdb reads the password by the name /dev/stdin, and a pipe opened by name must be one's own.
    """
    text = sys.stdin.buffer.read()
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    os.dup2(reader, 0)


def _die_with(parent: int) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != parent:  # it died before we asked for the signal
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
