"""The log of Crossfade's processes: readable lines on a terminal, JSON lines elsewhere, always on stderr."""

from __future__ import annotations

import select
import sys
from collections.abc import MutableMapping
from typing import Any


class Log:
    """An event in plain words, facts as keywords; `process` stands in each line.

    Opened at the first line, because structlog costs more than all the rest of a start. A line that
    cannot be written at once is lost: a pager that nobody scrolls, or a pipe whose reader has gone,
    must not stop the one process on which everything hangs.
    """

    def __init__(self, process: str) -> None:
        self._process = process
        self._logger: Any = None

    def info(self, event: str, **facts: Any) -> None:
        self._open().info(event, **facts)

    def warning(self, event: str, **facts: Any) -> None:
        self._open().warning(event, **facts)

    def error(self, event: str, **facts: Any) -> None:
        self._open().error(event, **facts)

    def _open(self) -> Any:
        if self._logger is None:
            import structlog  # noqa: PLC0415

            logger = structlog.wrap_logger(
                _Stderr(), processors=_processors(structlog, terminal=sys.stderr.isatty())
            )
            self._logger = logger.bind(process=self._process)
        return self._logger


def configure(process: str) -> None:
    """Have structlog's own loggers of this process write such lines too."""
    import structlog  # noqa: PLC0415

    def name(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {"process": process, **event}

    structlog.configure(
        processors=[name, *_processors(structlog, terminal=sys.stderr.isatty())],
        logger_factory=lambda *_: _Stderr(),
    )


def _processors(structlog: Any, *, terminal: bool) -> list[Any]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
    ]


class _Stderr:
    """Where structlog's finished lines go."""

    def msg(self, line: str) -> None:
        try:
            if select.select([], [sys.stderr], [], 0)[1]:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
        except (OSError, ValueError):
            return

    info = warning = error = critical = exception = msg
