"""Fields of answers that differ between any two answers, or that say how and not what was answered.

By exact name: a list of words that a name contains would hide `X-Candidate-Id` behind `date`.
"""

from __future__ import annotations

from typing import Final

VOLATILE: Final = frozenset(
    {
        "age", "alt-svc", "connection", "date", "keep-alive", "nel", "proxy-connection", "report-to",
        "server", "server-timing", "strict-transport-security", "trailer", "transfer-encoding", "upgrade",
        "via", "x-amzn-trace-id", "x-b3-parentspanid", "x-b3-sampled", "x-b3-spanid", "x-b3-traceid",
        "x-cache",
        "x-correlation-id", "x-envoy-upstream-service-time", "x-powered-by", "x-request-id",
        "x-response-time", "x-runtime", "x-served-by", "x-trace-id", "b3", "traceparent", "tracestate",
    }
)  # fmt: skip
"""Never compared, unless a rule says so."""
PRESENCE: Final = frozenset({"etag", "last-modified", "expires"})
"""That they are there is compared, their values are not: each backend makes its own."""
OF_THE_CODING: Final = frozenset({"content-length", "content-encoding", "accept-ranges", "content-md5"})
"""Bodies are decoded before they are compared."""
