"""Whether two answers are equal by a look at their bytes: the fast way, which most pairs end at.

It may say no to what a closer look finds equal, and never says yes to what is not.
"""

from __future__ import annotations

import re

from core.mirrored import Leg
from shadow.volatile_headers import OF_THE_CODING, VOLATILE

_NOT_COMPARED = re.compile(
    rb"^(?:" + b"|".join(name.encode() for name in sorted(VOLATILE | (OF_THE_CODING - {"content-encoding"})))
    + rb"):[^\n]*\n",
    re.IGNORECASE | re.MULTILINE,
)  # fmt: skip


def same(one: Leg, other: Leg) -> bool:
    """Both are whole answers, none is a failure, and nothing that is compared differs."""
    return (
        one.status == other.status
        and 0 < one.status < 500
        and one.body == other.body
        and one.trouble is None
        and other.trouble is None
        and not one.cut
        and not other.cut
        and (
            one.fields == other.fields
            or _NOT_COMPARED.sub(b"", one.fields) == _NOT_COMPARED.sub(b"", other.fields)
        )
    )
