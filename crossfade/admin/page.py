"""Whether the instance is ready, and the page that shows how it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pydantic import TypeAdapter

from crossfade.admin.answers import CutoverShown
from crossfade.status import ProxyStatus


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether all workers accept new requests, and if not, why."""

    ready: bool
    reasons: list[str]


READINESS = TypeAdapter(Readiness)


def readiness(status: ProxyStatus | None) -> Readiness:
    if status is None:
        return Readiness(False, ["the supervisor does not answer"])
    return Readiness(status.ready, status.not_ready)


def status_page(status: ProxyStatus | None, cutovers: Sequence[CutoverShown] = ()) -> str:
    """A page without scripts or anything from elsewhere; it reloads itself."""
    if status is None:
        return _page("crossfade", "<p class=bad>The supervisor does not answer.</p>")
    verdict = (
        "<b class=good>ready</b>"
        if status.ready
        else f"<b class=bad>{escape(', '.join(status.not_ready))}</b>"
    )
    facts = {
        "state": escape(status.state),
        "ready": verdict,
        "listening on": escape(", ".join(status.listen)),
        "configuration": f"{escape(status.config)}, generation {status.generation}",
        "version": escape(status.version),
        "up": f"{status.uptime_seconds:.0f} s, {status.restarts} restarts, "
        f"last start took {status.start_seconds:.2f} s",
        "ended workers": escape(
            ", ".join(f"{n} {reason}" for reason, n in status.worker_exits.items()) or "none"
        ),
    }
    rows = [
        (w.worker, w.pid, escape(w.state), w.generation, f"{w.age_seconds:.0f} s", w.connections, w.in_flight,
         f"{w.memory_bytes / 2**20:.1f} MiB")
        for w in status.workers
    ]  # fmt: skip
    head = ("worker", "pid", "state", "generation", "age", "connections", "in flight", "memory")
    return _page(
        f"crossfade on {escape(', '.join(status.listen))}",
        "<dl>" + "".join(f"<dt>{name}<dd>{value}" for name, value in facts.items()) + "</dl>"
        + _table(head, rows) + _cutovers(cutovers)
        + "<p><a href=/metrics>metrics</a> <a href=/api/v1/proxy>JSON</a> "
        "<a href=/api/v1/openapi.json>OpenAPI</a> <a href=/readyz>readiness</a></p>",
    )  # fmt: skip


def _cutovers(cutovers: Sequence[CutoverShown]) -> str:
    """Which side has the authority, and what became of the last walk."""
    if not cutovers:
        return ""
    head = ("cutover", "authority", "generation", "phase", "last walk", "state", "writes waited", "message")
    rows = []
    for one in cutovers:
        side = one.side or ("not prepared" if one.finished is None else f"finished at {one.finished}")
        known = (escape(one.name), f"<b>{side}</b>", one.generation, one.phase or "-")
        if not one.walks:
            rows.append((*known, "none yet", "", "", ""))
            continue
        last = one.walks[0]
        colour = {"done": "good", "cancelled": "bad"}.get(last.state, "now")
        kind = f"{last.id} to {last.towards}{', a rehearsal' if last.rehearsal else ''}"
        waited = "" if last.held_seconds is None else f"{last.held_seconds * 1000:.0f} ms"
        state = f"<span class={colour}>{last.state}</span>"
        rows.append((*known, kind, state, waited, escape(last.message or "")))
    return "<h2>Cutovers</h2>" + _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return (
        "<table><tr>" + "".join(f"<th>{name}" for name in head)
        + "".join("<tr>" + "".join(f"<td>{value}" for value in row) for row in rows) + "</table>"
    )  # fmt: skip


def _page(title: str, body: str) -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{body}</html>"
    )


STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "h1{font-size:1.3rem}h2{font-size:1.1rem;margin:1.5rem 0 .3rem}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.5rem}"
    "dd{margin:0}dt{opacity:.7}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{text-align:left;padding:.25rem 1rem .25rem 0;border-bottom:1px solid #8884}"
    ".good{color:#188038}.bad{color:#d93025}.now{color:#b06000}a{margin-right:1rem}"
)
