"""Where Crossfade differs from nginx and from HAProxy at once, and why; and the table of it.

A difference from one of the two is a choice between two living practices and needs no defence. A
difference from both does: it must stand in `REASONS`, and what stands there must still occur.

    python -m tests.differential.differences     rewrites the table in docs/http.md
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.differential.play import CASES, Played, played
from tests.differential.proxies import CROSSFADE_KIND, HAPROXY_KIND, NGINX_KIND
from tests.differential.verdict import ASPECTS, aspects

PAGE = Path(__file__).resolve().parents[2] / "docs" / "http.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
COMPARED_WITH = {"nginx": "1.22", "HAProxy": "2.6"}
"""The versions that the table is true of."""

REASONS: dict[str, tuple[str, ...]] = {
    "The field that frames a body goes on in its plain spelling, because the next parser may not know "
    "another.": ("Chunked in capitals",),
    "An answer that is cut must not look whole: without a framing it ends in a reset.": (
        "chunked answer to HTTP/1.0, cut off",
    ),
    "Who sends Upgrade says so in Connection (RFC 9110, 7.8), with 426 as well.": ("426 names the upgrade",),
    "Lines end in CR LF and a request line has single spaces. RFC 9112 (2.2, 3) lets a server read more "
    "than that; two readers that read differently are how requests are smuggled.": (
        "LF before",
        "two spaces after method",
        "two spaces before version",
        "LF ends the line",
        "LF everywhere",
        "field value with LF",
        "field block ends in LF",
        "field block ends in LF LF",
    ),
    "Another version is 505, whatever it is. RFC 9110 (2.5) would have 1.2 read as 1.1, but no client "
    "sends it and whoever does is testing parsers.": ("version 1.2", "version 0.9", "HTTP/2 preface"),
    "A tunnel is not what this proxy is for: 405 names the methods that are.": ("CONNECT",),
    "Absolute form names http or https and the same authority as Host, or the request is refused.": (
        "absolute-form, ftp",
    ),
    "RFC 9112 (3.2.4): without a path, OPTIONS in absolute form is `OPTIONS *`.": (
        "OPTIONS absolute-form without path",
    ),
    "The limits are 16 kB for a target, 32 kB for a head and 250 fields (each can be set), and the status "
    "says which was met (RFC 6585, RFC 9110 15.5.15).": (
        "target too long",
        "300 fields",
        "head of 100 kB",
        "after 431",
    ),
    "Host must be a host and a port by RFC 3986 (RFC 9112, 3.2: 400): backends build links, cache keys and "
    "routing on it.": (
        "Host with user",
        "Host with letters as port",
        "Host with two ports",
        "Host with open bracket",
        "Host with query",
        "Host with fragment",
        "Host with backslash",
        "Host in UTF-8",
    ),
    "A request goes on as HTTP/1.1, which needs a Host: the backend's own authority, as if the client had "
    "spoken to it, or that of an absolute target.": (
        "HTTP/1.0 without Host",
        "HTTP/1.0 absolute-form without Host",
    ),
    "Control characters are no field content (RFC 9110, 5.5).": (
        "field value with 01",
        "field value with DEL",
        "field value with vertical tab",
    ),
    "A length has at most 18 digits, which is more than any body.": ("length of 40 digits",),
    "Chunks are read by the letter (RFC 9112, 7.1): hex digits, CR LF, the declared length. A reader that "
    "is lenient here sees another end of the body than the next one.": (
        "chunk size of 17 digits",
        "chunk size line ends in LF",
        "chunk extension ends in LF",
        "chunk extension with NUL",
        "chunk data ends in LF",
        "chunk data too short",
        "chunk last line ends in LF",
        "chunk body ends in LF",
    ),
    "A trailer section is read like a head, and may not carry what frames, routes or authenticates (RFC "
    "9110, 6.5.1). nginx drops trailers; HAProxy forwards them all.": (
        "trailer Content-Length",
        "trailer Transfer-Encoding",
        "trailer Host",
        "trailer Authorization",
        "trailer Cookie",
        "trailer Connection",
        "trailer ends in LF",
        "trailer folded",
        "trailer with NUL",
    ),
    "What Connection nominates ends here (RFC 9110, 7.6.1, a MUST that neither of the others follows). To "
    "nominate what every hop needs is an attack and refused.": (
        "Connection nominates a field",
        "Connection nominates in two fields, other case",
        "Connection nominates Authorization and Cookie",
        "Connection nominates Content-Length",
        "Connection nominates Host",
        "Connection nominates Transfer-Encoding",
        "answer's hop-by-hop fields",
        "answer nominates Content-Length and Set-Cookie",
    ),
    "Fields of this hop end here (RFC 9110, 7.6.1, 11.7.2).": (
        "Keep-Alive and Proxy-Connection",
        "Proxy-Authorization",
    ),
    "Upgrade goes on only when Connection asks for it, and never to h2c: behind that tunnel nobody would "
    "read the requests (RFC 9113, 3.1).": (
        "Upgrade without Connection",
        "h2c upgrade",
        "h2c among upgrades",
        "answer offers an upgrade",
    ),
    "Expect is forwarded, and when the backend keeps silent for `timeouts.expect` we say 100 ourselves; "
    "nginx always says it, HAProxy never.": ("Expect, backend is silent",),
    "An unknown expectation is answered with 417 (RFC 9110, 10.1.1: MAY), before anybody acts on it.": (
        "Expect something else",
        "HEAD refused",
    ),
    "The end of the client's direction is passed on, as it would arrive without us.": (
        "half-close reaches the backend",
    ),
    "Who is too slow is told so: 408.": ("body never ends",),
    "A status line is HTTP/1.0 or 1.1, one space and 100 to 999; the rest is 502 instead of a guess.": (
        "status line with status 99",
        "status line with status 099",
        "status line with status 1000",
        "status line with two spaces",
        "status line with tab",
        "status line with NUL in reason",
        "status line of HTTP/2.0",
        "status line of HTTP/1.2",
        "empty line before the status line",
    ),
    "Answers end their lines in CR LF, too: a LF from user input would otherwise become a field of the "
    "answer (response splitting). A backend that ends all its lines in LF has to be repaired or adapted.": (
        "answer with LF everywhere",
        "status line ends in LF",
        "answer field value with LF",
        "answer field block ends in LF",
    ),
    "An old backend's folded field becomes one line with single blanks (RFC 9112, 5.2); nginx drops it.": (
        "answer field folded",
    ),
    "Control characters are no field content in answers, either.": (
        "answer field value with 01",
        "answer field value with DEL",
    ),
    "An answer whose length can be read in two ways is 502 (RFC 9112, 6.3, 11.1).": (
        "answer length 2, 2",
        "answer length of 2^64 + 2",
        "answer length and coding",
        "answer coding empty",
        "answer coding in HTTP/1.0",
    ),
    "Chunks of an answer are read by the letter, too. A fault after the first byte cannot be a 502 any "
    "more: the client's connection is broken off without the last chunk.": (
        "answer chunk size of 17 digits",
        "answer chunk size line ends in LF",
        "answer chunk extension ends in LF",
        "answer chunk data ends in LF",
        "answer last chunk ends in LF",
        "answer chunks end in LF",
        "answer trailer Content-Length",
        "answer trailer Set-Cookie",
        "answer trailer with NUL",
    ),
    "A fault before the first byte reached the client is a 502.": (
        "answer chunk extension ends in LF, in the head's segment",
        "answer last chunk ends in LF, in the head's segment",
        "answer trailer Set-Cookie, in the head's segment",
    ),
    "A safe request without a body is sent once more when the pooled connection died before one byte of an "
    "answer (RFC 9110, 9.2.2); the others' retries are switched off here.": (
        "no answer to GET, close",
        "no answer to GET, reset",
    ),
    "HTTP/1.0 knows no 1xx (RFC 9110, 15.2: MUST NOT).": ("103 to HTTP/1.0",),
}
ACCEPTED = {name: reason for reason, names in REASONS.items() for name in names}

OPEN: dict[str, str] = {}
"""Cases in which Crossfade does not do what the case demands yet; the case expects the right thing."""

UNSTEADY = frozenset({"trailer with space before colon"})
"""Cases in which another proxy's outcome is a race, so that they cannot be compared."""

Row = tuple[str, str, str, str, str]
"""Case, aspect, and what Crossfade, nginx and HAProxy showed."""


def differences(crossfade: Played, nginx: Played, haproxy: Played) -> list[Row]:
    """The first aspect of each case in which Crossfade is unlike both, in the order of the cases.

    What cannot be compared, or is known to be wrong and to vanish, is left out.
    """
    rows = []
    for case in CASES:
        if case.name in UNSTEADY or (case.name in OPEN and case.name not in ACCEPTED):
            continue
        ours, *others = (aspects(case, each.outcomes[case.name]) for each in (crossfade, nginx, haproxy))
        for aspect in ASPECTS:
            if all(ours[aspect] != other[aspect] for other in others):
                rows.append((case.name, aspect, ours[aspect], *(other[aspect] for other in others)))
                break
    return rows


def table(rows: list[Row], versions: dict[str, str]) -> str:
    """The page's part that is generated: the rows under their reasons."""
    lines = [
        f"{len(CASES)} cases; {len(rows)} of them differ from both nginx {versions['nginx']} and HAProxy "
        f"{versions['HAProxy']}.",
        "",
    ]
    for reason, names in REASONS.items():
        listed = [row for row in rows if row[0] in names]
        lines += [reason, "", "| case | aspect | Crossfade | nginx | HAProxy |", "|--|--|--|--|--|"]
        lines += map(table_line, listed)
        lines.append("")
    if OPEN:
        lines += ["Not right yet (the cases expect the right thing and are marked as failing):", ""]
        lines += [f"- {name}: {cause}" for name, cause in OPEN.items()] + [""]
    return "\n".join(lines)


def table_line(row: Row) -> str:
    return "| " + " | ".join(map(cell, row)) + " |"


def cell(text: str) -> str:
    plain = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    plain = plain if len(plain) <= 60 else plain[:57] + "..."
    for char in "\\|*<":
        plain = plain.replace(char, "\\" + char)
    return plain or "(nothing)"


def rewrite_page() -> None:
    async def play() -> list[Played]:
        return await asyncio.gather(*map(played, (CROSSFADE_KIND, NGINX_KIND, HAPROXY_KIND)))

    ours, nginx, haproxy = asyncio.run(play())
    rows = differences(ours, nginx, haproxy)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    versions = {"nginx": nginx.version, "HAProxy": haproxy.version}
    PAGE.write_text(before + BEGIN + table(rows, versions) + END + after)
    for name in sorted({row[0] for row in rows} ^ ACCEPTED.keys()):
        print("no longer occurs:" if name in ACCEPTED else "has no reason:", name)


if __name__ == "__main__":
    rewrite_page()
