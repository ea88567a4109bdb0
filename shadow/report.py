"""A report as a page to read: Markdown for a pull request, and one HTML file that needs nothing else. Pure.

Both are made from the report's JSON and from nothing else, so what is read is what the digest is over.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from core.metrics import LATENCY_BUCKETS

Json = Mapping[str, Any]
WORDS: Final = {"ready": "ready", "not_ready": "NOT READY", "not_enough_evidence": "not enough evidence"}


def as_markdown(report: Json) -> str:
    return "\n".join(_markdown(report)) + "\n"


def as_html(report: Json) -> str:
    return "\n".join(_html(report)) + "\n"


def _verdict(report: Json) -> str:
    if not report["routes"]:
        return "Nothing was compared, so nothing is ready."
    ready = sum(route["readiness"] == "ready" for route in report["routes"])
    all_of_them = len(report["routes"])
    return (
        f"All {all_of_them} routes are ready."
        if report["ready"]
        else f"{ready} of {all_of_them} routes are ready."
    )


def _facts(report: Json) -> str:
    of = f"Flag {report['flag']}" if report["flag"] else "All flags"
    return (
        f"{of}, the last {report['hours']:g} hours until {report['made_at']}. A route is ready when at least "
        f"{report['wanted_pairs']:,} pairs were compared, nothing is open, and at most {report['rate']:.3%} "
        f"of its pairs can differ (wrong in at most {report['alpha']:.0%} of all samples)."
    )


def _seen(route: Json) -> str:
    """What came up: a status that nobody got was not compared either."""
    if not route["methods"]:
        return "nothing"
    return f"{_counts(route['methods'])}; legacy answered {_counts(route['statuses'])}"


def _covered(report: Json) -> str:
    """How much of the API was compared, in a sentence; empty without a document."""
    if not report["coverage"]:
        return ""
    seen = sum(one["pairs"] > 0 for one in report["coverage"])
    said = f"{seen} of the {len(report['coverage'])} operations of the OpenAPI document were compared."
    if report["not_in_document"]:
        said += f" {report['not_in_document']:,} pairs are of requests that it does not have."
    return said


def _uncovered(report: Json) -> list[Json]:
    return [one for one in report["coverage"] if not one["pairs"]]


# Markdown.


def _markdown(report: Json) -> Iterator[str]:
    yield f"## Crossfade: {_verdict(report)}"
    yield ""
    yield _facts(report)
    yield ""
    yield "| route | flag | verdict | pairs | differ at most | open | why |"
    yield "|---|---|---|--:|--:|--:|---|"
    for route in report["routes"]:
        cells = (
            f"`{route['route']}`", route["flag"], WORDS[route["readiness"]], f"{route['pairs']:,}",
            f"{route['upper_bound']:.3%}", str(len(route["open"])), _cell("; ".join(route["reasons"]) or "-"),
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"
    if report["coverage"]:
        yield ""
        yield _covered(report)
        yield ""
        for one in _uncovered(report):
            name = f"`{_cell(one['method'])} {_cell(one['path'])}`"
            yield f"- never compared: {name} ({one['flag'] or 'no route'})"
    for route in report["routes"]:
        if route["example"] is not None:
            yield ""
            yield f"### `{route['route']}`"
            yield ""
            yield "| place | kind | legacy | new |"
            yield "|---|---|---|---|"
            for one in route["example"]["differences"][:10]:
                yield (
                    f"| `{_cell(one['path'])}` | {one['kind']} | `{_cell(one['legacy']) or ' '}` "
                    f"| `{_cell(one['new']) or ' '}` |"
                )
    yield ""
    yield from (f"- not mirrored, {flag}: {_counts(counts)}" for flag, counts in report["skipped"].items())
    for rule in report["expired_rules"]:
        yield f"- the rule {rule} has expired and does not apply"
    yield ""
    yield f"Digest `{report['digest']}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda pair: -pair[1]))


# HTML.

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8886; --bad: #b3261e; --good: #1b6e3c; --wait: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --bad: #ffb4ab; --good: #8fd6a6; --wait: #f2c069; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: .92rem }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line) }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
code, pre { font: .86rem/1.45 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap }
.ready { color: var(--good) } .not_ready { color: var(--bad); font-weight: 600 }
.not_enough_evidence { color: var(--wait) }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
.sides pre { border: 1px solid var(--line); border-radius: 4px; padding: .6rem }
.sides pre { max-height: 24rem; overflow: auto }
svg { display: block; max-width: 100% } .note { opacity: .8; font-size: .9rem }
@media (max-width: 45rem) { .sides { grid-template-columns: 1fr } }
@media print { body { max-width: none; margin: 0 } details { break-inside: avoid } }
@media print { .sides pre { max-height: none } }
"""


def _html(report: Json) -> Iterator[str]:
    yield '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Crossfade: {escape(_verdict(report))}</title><style>{_STYLE}</style></head><body><main>"
    yield f"<h1>{escape(_verdict(report))}</h1><p>{escape(_facts(report))}</p>"
    yield "<table><thead><tr><th scope=col>route</th><th scope=col>flag</th><th scope=col>verdict</th>"
    yield "<th scope=col class=n>pairs</th><th scope=col class=n>differ at most</th>"
    yield "<th scope=col>why</th></tr></thead><tbody>"
    for number, route in enumerate(report["routes"]):
        yield (
            f'<tr><td><a href="#r{number}"><code>{escape(route["route"])}</code></a></td>'
            f"<td>{escape(route['flag'])}</td>"
            f'<td class="{route["readiness"]}">{WORDS[route["readiness"]]}</td>'
            f"<td class=n>{route['pairs']:,}</td><td class=n>{route['upper_bound']:.3%}</td>"
            f"<td>{'<br>'.join(map(escape, route['reasons'])) or '-'}</td></tr>"
        )
    yield "</tbody></table>"
    for number, route in enumerate(report["routes"]):
        yield from _route(number, route)
    if report["coverage"]:
        yield f"<h2>Coverage</h2><p>{escape(_covered(report))}</p>" + _operations(report["coverage"])
    yield "<h2>What was not compared</h2><ul>"
    if not report["skipped"]:
        yield "<li>nothing was left out of what could be mirrored</li>"
    for flag, counts in report["skipped"].items():
        yield f"<li>{escape(flag)}: {escape(_counts(counts))}</li>"
    for rule in report["expired_rules"]:
        yield f"<li>the rule {escape(rule)} has expired and does not apply</li>"
    yield "</ul>"
    yield f"<p class=note>Digest <code>{report['digest']}</code></p></main></body></html>"


def _route(number: int, route: Json) -> Iterator[str]:
    yield f'<section id="r{number}"><h2><code>{escape(route["route"])}</code> ({escape(route["flag"])}): '
    yield f'<span class="{route["readiness"]}">{WORDS[route["readiness"]]}</span></h2>'
    yield (
        f"<p>{route['pairs']:,} pairs: {route['equal']:,} equal byte by byte, {route['unequal']:,} not, of "
        f"which {route['inspected']:,} were looked at ({escape(_counts(route['verdicts']) or 'none')}). "
        f"{route['drawn']:,} were drawn by lot to learn how often legacy differs from itself. "
        f"Seen: {escape(_seen(route))}.</p>"
    )
    yield _latencies(route["latency"])
    for title, name in (("Open", "open"), ("Noise", "noise"), ("Accepted", "accepted")):
        if route[name]:
            yield f"<h3>{title}</h3>" + _categories(route[name])
    if route["example"] is not None:
        yield from _example(route["example"])
    yield "</section>"


def _operations(coverage: Sequence[Json]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['method'])} {escape(one['path'])}</code></td>"
        f"<td>{escape(one['flag']) or 'no route'}</td>"
        f'<td class="n{"" if one["pairs"] else " not_ready"}">{one["pairs"]:,}</td></tr>'
        for one in sorted(coverage, key=lambda one: one["pairs"] > 0)
    )
    head = "<th scope=col>operation</th><th scope=col>flag</th><th scope=col class=n>pairs</th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _categories(categories: Sequence[Json]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['path'])}</code></td><td>{escape(one['kind'])}</td>"
        f"<td class=n>{one['count']:,}</td><td>{escape(one['mark'])}"
        f"{''.join(': ' + escape(why) for why in (one['mark_reason'], one['ruled']) if why)}</td>"
        f"<td><code>{escape(one['id'])}</code></td></tr>"
        for one in categories
    )
    head = "<th scope=col>place</th><th scope=col>kind</th><th scope=col class=n>times</th>"
    head += "<th scope=col>mark</th><th scope=col>id</th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _example(example: Json) -> Iterator[str]:
    exhibit = example["exhibit"]
    asked = exhibit["asked"]
    yield "<details open><summary>An example, redacted: "
    yield f"<code>{escape(asked['method'])} {escape(asked['target'])}</code></summary><table><thead><tr>"
    yield "".join(f"<th scope=col>{name}</th>" for name in ("place", "kind", "legacy", "new"))
    yield "</tr></thead><tbody>"
    for one in example["differences"][:20]:
        yield (
            f"<tr><td><code>{escape(one['path'])}</code></td><td>{escape(one['kind'])}</td>"
            f"<td><code>{escape(one['legacy'])}</code></td><td><code>{escape(one['new'])}</code></td></tr>"
        )
    yield "</tbody></table><div class=sides>"
    for side in ("legacy", "new"):
        answer = exhibit[side]
        said = answer["trouble"] or f"{answer['status']}, {answer['seconds'] * 1000:.0f} ms"
        body = escape(_pretty(answer["body"]))
        yield f"<div><h4>{side}: {escape(said)}</h4><pre tabindex=0>{body}</pre></div>"
    yield "</div></details>"


def _pretty(body: Json) -> str:
    text: str = body["text"]
    if body["kind"] in ("json", "multipart"):
        with contextlib.suppress(ValueError):
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    trouble = f", {body['trouble']}" if body["trouble"] else ""
    return text[:8000] or f"({body['kind']}, {body['length']} bytes{trouble})"


def _latencies(latency: Mapping[str, Sequence[int]]) -> str:
    """Both sides' answers by how long they took, as small bars one above the other."""
    sides = {side: counts for side, counts in latency.items() if sum(counts)}
    if not sides:
        return ""
    last = max(max(n for n, count in enumerate(counts) if count) for counts in sides.values())
    width, high = 18, 36
    parts = []
    for row, (side, counts) in enumerate(sorted(sides.items())):
        most, top = max(counts), row * (high + 16)
        parts.append(f'<text x="0" y="{top + high - 4}" font-size="12" fill="currentColor">{side}</text>')
        for number, count in enumerate(counts[: last + 1]):
            size = round(high * count / most, 1)
            bound = f"{LATENCY_BUCKETS[number] * 1000:g} ms" if number < len(LATENCY_BUCKETS) else "more"
            parts.append(
                f'<rect x="{60 + number * width}" y="{top + high - size}" width="{width - 3}" '
                f'height="{size}" fill="currentColor" opacity=".65">'
                f"<title>{side}, up to {bound}: {count:,}</title></rect>"
            )
    total = 60 + (last + 1) * width
    label = ", ".join(f"{side} {_quantile(counts)}" for side, counts in sorted(sides.items()))
    return (
        f'<figure><svg viewBox="0 0 {total} {2 * (high + 16)}" width="{total}" role="img" '
        f'aria-label="Latency: {label}">{"".join(parts)}</svg>'
        f"<figcaption class=note>{label}</figcaption></figure>"
    )


def _quantile(counts: Sequence[int]) -> str:
    """The median and the 99th of a hundred, by the bounds of their buckets."""
    found = []
    for share in (0.5, 0.99):
        wanted, seen = share * sum(counts), 0
        for number, count in enumerate(counts):
            seen += count
            if seen >= wanted:
                bound = LATENCY_BUCKETS[number] * 1000 if number < len(LATENCY_BUCKETS) else float("inf")
                found.append(f"p{share * 100:g} at most {bound:g} ms")
                break
    return ", ".join(found)
