"""Take secrets out of what leaves the process that saw them, so that what was equal stays equal.

A secret becomes `<secret:KIND:…>`, an HMAC by this installation's key: the same secret is the same token,
another secret another one, and nobody without the key can look whether a guess was right.

A value that was secret in one place (a cookie, a password field) is taken out wherever else it stands in the
same pair, also escaped or percent-encoded: an error text that repeats the password must not give it away.
"""

from __future__ import annotations

import hmac
import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, quote_plus, unquote_plus, urlencode

from shadow.exhibit import Fields
from shadow.json_text import Json
from shadow.secret_words import LOOKS, SHORTEST_CARD, is_card_number, says_secret

SHORTEST = 6
"""Characters from which on a secret is looked for in other places; shorter ones are there by chance."""
_COOKIE_FIELDS = frozenset({"cookie", "set-cookie"})
_SECRET_FIELDS = frozenset({"authorization", "proxy-authorization", "www-authenticate", "x-forwarded-for"})
_TOKEN = re.compile(r"<secret:[a-z]+:[0-9a-f]{16}>")


@dataclass(frozen=True, slots=True)
class Policy:
    """What users say besides. Names are compared without case; a path begins with `$`."""

    also: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    emails: bool = True


class Redactor:
    """Redacts by one key and one policy. Holds no secret between two pairs."""

    def __init__(self, key: bytes, policy: Policy = Policy()) -> None:
        self._key = key
        self._names = frozenset(name.lower() for name in policy.also if not name.startswith("$"))
        self._paths = frozenset(
            tuple(re.split(r"[.\[\]]+", path[1:].strip(".[]")))
            for path in policy.also
            if path.startswith("$")
        )
        self._never = frozenset(name.lower() for name in policy.never)
        self._emails = policy.emails

    def token(self, kind: str, value: str) -> str:
        said = f"{kind}\0{value}".encode("utf-8", "surrogatepass")
        return f"<secret:{kind}:{hmac.digest(self._key, said, 'sha256').hex()[:16]}>"

    def digest(self, body: bytes) -> str:
        """What tells whether two bodies are equal, and nothing else."""
        return hmac.digest(self._key, body, "sha256").hex()[:32]

    def is_secret(self, name: str) -> bool:
        low = name.lower()
        return low not in self._never and (low in self._names or says_secret(name))

    # What is secret in a message.

    def of_fields(self, fields: Fields) -> Iterator[str]:
        """The secret values in header fields."""
        for name, value in fields:
            if name in _COOKIE_FIELDS:
                for part in value.split(";") if name == "cookie" else [value.partition(";")[0]]:
                    yield part.partition("=")[2].strip()
            elif name in _SECRET_FIELDS or self.is_secret(name):
                yield value
                yield value.rpartition(" ")[2]

    def of_form(self, text: str) -> Iterator[str]:
        for name, value in parse_qsl(text, keep_blank_values=True):
            if self.is_secret(name):
                yield value

    def of_json(self, value: Json, at: tuple[str, ...] = (), *, secret: bool = False) -> Iterator[str]:
        if isinstance(value, dict):
            for name, part in value.items():
                here = (*at, name)
                yield from self.of_json(part, here, secret=secret or self._is_secret_at(name, here))
        elif isinstance(value, list):
            for part in value:
                yield from self.of_json(part, (*at, "*"), secret=secret)
        elif secret and value is not None and not isinstance(value, bool):
            yield str(value)

    def _is_secret_at(self, name: str, at: tuple[str, ...]) -> bool:
        return self.is_secret(name) or at in self._paths

    # Taking them out.

    def in_text(self, text: str, known: Known) -> str:
        """A text of any kind."""
        text = known.taken_out(text)
        # One short word without any sign is no secret by its looks.
        return text if len(text) < SHORTEST_CARD and text.isalnum() else LOOKS.sub(self._looked_at, text)

    def _looked_at(self, found: re.Match[str]) -> str:
        whole = found[0]
        if found["token"] is not None:
            return whole
        if found["name"] is not None:
            value = found["value"]
            if not self.is_secret(found["name"]) or _TOKEN.match(value):
                # Another secret may begin within what looked like a value.
                head = whole[: len(whole) - len(value)]
                return head + LOOKS.sub(self._looked_at, value) if len(value) < len(whole) else whole
            return whole[: -len(value)] + self.token("value", value)
        if found["bearer"] is not None:
            return whole[: -len(found["bearer"])] + self.token("value", found["bearer"])
        if found["card"] is not None:
            return self.token("card", whole) if is_card_number(whole) else whole
        if found["email"] is not None:
            return self.token("email", whole) if self._emails else whole
        return self.token("value", whole)

    def in_fields(self, fields: Fields, known: Known) -> Fields:
        return tuple((name, self._in_field(name, value, known)) for name, value in fields)

    def _in_field(self, name: str, value: str, known: Known) -> str:
        if name == "cookie":
            return "; ".join(self._in_cookie(part.strip()) for part in value.split(";"))
        if name == "set-cookie":
            cookie, semicolon, attributes = value.partition(";")
            return self._in_cookie(cookie) + semicolon + known.taken_out(attributes)
        if name in _SECRET_FIELDS or self.is_secret(name):
            return self.token("value", value)
        return self.in_text(value, known)

    def _in_cookie(self, pair: str) -> str:
        name, equals, value = pair.partition("=")
        return f"{name}={self.token('value', value.strip())}" if equals else self.token("value", name)

    def in_target(self, target: str, known: Known) -> str:
        """A path with its query."""
        path, mark, query = target.partition("?")
        return self.in_text(path, known) + mark + (self.in_form(query, known) if mark else "")

    def in_form(self, text: str, known: Known) -> str:
        pairs = [
            (name, self.token("value", value) if self.is_secret(name) else self.in_text(value, known))
            for name, value in parse_qsl(text, keep_blank_values=True)
        ]
        # What is no form is a text.
        return urlencode(pairs, safe="<>:") if pairs else self.in_text(unquote_plus(text), known)

    def in_json(self, value: Json, known: Known, at: tuple[str, ...] = (), *, secret: bool = False) -> Json:
        if isinstance(value, dict):
            return {
                self._in_name(name, known): self.in_json(
                    part, known, (*at, name), secret=secret or self._is_secret_at(name, (*at, name))
                )
                for name, part in value.items()
            }
        if isinstance(value, list):
            return [self.in_json(part, known, (*at, "*"), secret=secret) for part in value]
        if value is None or isinstance(value, bool):
            return value
        if secret:
            return self.token("value", str(value))
        if isinstance(value, str):
            return self.in_text(value, known)
        text = str(value)
        return self.token("value", text) if text in known else self._in_number(value, text)

    def _in_name(self, name: str, known: Known) -> str:
        return self.in_text(name, known) if len(name) >= SHORTEST else name

    def _in_number(self, value: Json, text: str) -> Json:
        return self.token("card", text) if text.isdigit() and is_card_number(text) else value


class Known:
    """The secret values of one pair, to be taken out wherever they stand."""

    def __init__(self, redactor: Redactor, values: Iterable[str]) -> None:
        self._tokens: dict[str, str] = {}
        for value in sorted({value for value in values if len(value) >= SHORTEST}, key=len, reverse=True):
            token = redactor.token("value", value)
            for spelled in _spellings(value):
                self._tokens.setdefault(spelled, token)
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __contains__(self, value: str) -> bool:
        return value in self._tokens

    def taken_out(self, text: str) -> str:
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: self._tokens[found[0]], text)


def _spellings(value: str) -> set[str]:
    escaped = json.dumps(value)[1:-1]
    encoded = quote(value, safe="", errors="surrogatepass")
    return {
        value, unquote_plus(value), encoded, encoded.lower(), quote(value, errors="surrogatepass"),
        quote_plus(value, errors="surrogatepass"), escaped,
        escaped.replace("/", "\\/"), json.dumps(value, ensure_ascii=False)[1:-1], html.escape(value),
        html.escape(value, quote=False),
    } - {""}  # fmt: skip
