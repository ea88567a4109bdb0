"""One request to the admin API of the running instance, and what its answer means for a command."""

from __future__ import annotations

import argparse
import getpass
import http.client
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from crossfade.settings_file import read_document

OK, ERROR, USAGE, NOT_FOUND, DENIED = 0, 1, 2, 3, 4
REPORT_NEEDED, TRIPPED, NOT_CONVERGED, CONFLICT = 5, 6, 7, 9
CODES = {
    "not_found": NOT_FOUND,
    "archived": NOT_FOUND,
    "denied": DENIED,
    "unauthorized": DENIED,
    "conflict": CONFLICT,
    "exists": CONFLICT,
    "invalid": USAGE,
    "malformed": USAGE,
    "too_large": USAGE,
    "stage_jump": USAGE,
    "guardrail_tripped": TRIPPED,
    "report_needed": REPORT_NEEDED,
    "under_authority": TRIPPED,
    "blocked": TRIPPED,
}
"""Exit codes by the word of an error; any other word is an error of its own, 1."""
ANSWER_WITHIN = 15.0
"""Seconds beyond what the request itself waits for."""


class ApiError(Exception):
    """The API did not do it; `code` is the command's exit code."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        word: str = "failed",
        next_steps: Sequence[str] = (),
        unreachable: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.word = word
        self.next_steps = next_steps
        self.unreachable = unreachable
        """There is no API or no store to ask; nothing was done."""


@dataclass(frozen=True, slots=True)
class Api:
    """Where an admin API is, and by which token it is asked."""

    host: str
    port: int
    token: str
    local: bool
    """The token is the instance's own."""
    tls: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> Api:
        """The one at `--api`, or that of the instance that runs here. Raises ApiError."""
        token = options.token or os.environ.get("CROSSFADE_TOKEN") or None
        url = options.api or os.environ.get("CROSSFADE_API")
        return cls._here(options.config, token) if url is None else cls._at(url, token)

    @classmethod
    def _at(cls, url: str, token: str | None) -> Api:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if host is None or parts.scheme not in ("http", "https") or parts.path.strip("/"):
            raise ApiError(
                USAGE, f'"{url}" is no address of an API; expected one such as http://10.0.0.7:9180'
            )
        if token is None:
            raise ApiError(
                DENIED,
                "somewhere else a token of your own is needed: --token or CROSSFADE_TOKEN",
                word="unauthorized",
                next_steps=("there, an admin makes one: crossfade person add NAME --role ROLE --reason WHY",),
            )
        tls = parts.scheme == "https"
        return cls(host, port or (443 if tls else 80), token, local=False, tls=tls)

    @classmethod
    def _here(cls, config: Path, token: str | None) -> Api:
        from crossfade import instance  # noqa: PLC0415

        data_dir = data_dir_of(config)
        try:
            status = instance.ask(data_dir, {"do": "status"}, ANSWER_WITHIN)["status"]
        except instance.NothingRunningError as error:
            raise ApiError(
                NOT_FOUND,
                str(error),
                word="not_running",
                next_steps=(f"crossfade up -c {config}",),
                unreachable=True,
            ) from None
        except (TimeoutError, OSError, instance.NoAnswerError) as error:
            raise ApiError(ERROR, str(error), unreachable=True) from None
        host, _, port = status["admin"].rpartition(":")
        local = token is None
        if token is None:
            try:
                token = (data_dir / "run" / "admin.token").read_text(encoding="ascii").strip()
            except OSError as error:
                raise ApiError(
                    DENIED,
                    f"cannot read this instance's own token ({error.strerror}); "
                    "run this as the user who runs Crossfade, or give --token or CROSSFADE_TOKEN",
                    word="denied",
                ) from None
        return cls(host.strip("[]"), int(port), token, local)

    def get(self, path: str, **query: str | int | float | None) -> dict[str, Any]:
        wanted = {name: value for name, value in query.items() if value is not None}
        return self.ask("GET", path + (f"?{urlencode(wanted)}" if wanted else ""))

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, patience: float = 0.0
    ) -> dict[str, Any]:
        """The answer's JSON; `patience` is for what takes longer than an answer does. Raises ApiError."""
        wait = patience + (float(body.get("wait", 0.0)) if body else 0.0)
        kind = http.client.HTTPSConnection if self.tls else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=ANSWER_WITHIN + wait)
        headers = {
            "Authorization": f"Bearer {self.token}",
            "X-Crossfade-Via": "cli",
            **({"X-Crossfade-User": user()} if self.local else {}),
            **({"Content-Type": "application/json"} if body is not None else {}),
        }
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        except TimeoutError:
            raise ApiError(
                ERROR,
                f"the admin API at {self.host}:{self.port} has not answered in time, and may still do it",
                word="unknown_outcome",
                next_steps=("look whether it was done before you ask again: crossfade audit tail",),
                unreachable=True,
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(
                ERROR, f"the admin API at {self.host}:{self.port} does not answer: {error}", unreachable=True
            ) from None
        finally:
            connection.close()
        try:
            found = json.loads(text)
        except ValueError:
            found = {}
        if answer.status < 400 and isinstance(found, dict):
            return found
        word = found.get("error", "strange")
        raise ApiError(
            CODES.get(word, ERROR),
            found.get("message", f"a strange answer: {answer.status} {answer.reason}"),
            word=word,
            next_steps=found.get("next", ()),
            unreachable=answer.status == 503,
        )


def at_an_address(options: argparse.Namespace) -> bool:
    """Whether an API is named, instead of that of the instance that runs here."""
    return bool(options.api or os.environ.get("CROSSFADE_API"))


def data_dir_of(config: Path) -> Path:
    """Where the instance of this configuration lives, even if the rest of the file is invalid by now."""
    document = read_document(config, os.environ)
    if not document.readable:
        raise ApiError(USAGE, "\n".join(map(str, document.problems)))
    top = document.root.value
    named = top.get("data_dir") if isinstance(top, Mapping) else None
    folder = named if isinstance(named, str) else ".crossfade"
    return Path(os.path.abspath(config)).parent / folder


def user() -> str:
    """Who types this, for the audit of what the instance's own token does."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
