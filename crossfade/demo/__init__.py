"""`crossfade demo`: a whole migration of the sample product, all of it real and on this machine.

`stage.py` starts the programs, each in a process of its own, as in production: one PostgreSQL, both backends,
the streams between their databases, Crossfade before them. `people.py` sends the people who use it, from the
first act to the last. `acts.py` is the story, a table of acts; `play.py` runs the very commands that anybody
would type, and shows them; `screen.py` has the line that says what happens meanwhile. `facts.py` says at the
end whether anybody has noticed anything.
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from crossfade.demo import acts, facts
from crossfade.demo.people import people
from crossfade.demo.play import Play
from crossfade.demo.programs import DemoError
from crossfade.demo.screen import Screen, watching
from crossfade.demo.stage import Stage, find_sample, folder_for, set_up
from crossfade.embedded.postgres import EmbeddedPostgresError

PROLOGUE = (
    "A monolith, legacy, has served a product for years. A new service with its own database takes over,",
    "while people browse, write and send money. Each line with a $ is a command that you could type.",
)
REPORT = "report.html"
"""All that a demo without a folder of its own leaves behind."""


def run(serve: bool, folder: Path | None) -> int:
    """The exit code: 0 if each act did what it promises, and nobody has noticed anything.

    `folder` keeps the data; None takes a temporary folder, of which only the report is left. With `serve`
    everything stays up after the last act until Ctrl-C, and the exit code still says what came of it.
    """
    screen = Screen()
    # A plain `kill` takes the same way out as Ctrl-C. After kill -9 the kernel ends what we started.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with ExitStack() as stack:
            return _run(stack, screen, serve, folder)
    except (DemoError, EmbeddedPostgresError) as error:
        screen.talk(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        screen.talk("stopped")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(stack: ExitStack, screen: Screen, serve: bool, folder: Path | None) -> int:
    begun = time.monotonic()
    sample = find_sample()
    here = stack.enter_context(folder_for(folder, REPORT))
    stage = set_up(stack, here, sample, screen, durable=folder is not None)
    cents = facts.cents_in(stage.databases["legacy"])
    for line in PROLOGUE:
        screen.say(line)
    screen.say(f"The commands are typed in {here}, where crossfade.yaml is.")
    with people(stage, sample) as crowd, watching(screen, stage, crowd):
        play = Play(stage, screen, crowd, here / REPORT)
        for number, act in enumerate(acts.ACTS, 1):
            screen.head(f"{number}  {act.title}", act.why)
            act.play(play)
        told = crowd.go_home()
    screen.head("The facts", ())
    found = facts.gathered(play, told, cents)
    for line in facts.said(found, here / REPORT, time.monotonic() - begun):
        screen.say(line)
    wrong = facts.wrong(found)
    for line in wrong:
        screen.say(f"WRONG: {line}")
    if not wrong:
        screen.say("Nobody has noticed anything.")
    if serve:
        _serve(screen, stage)
    return 1 if wrong else 0


def _serve(screen: Screen, stage: Stage) -> None:
    """Until Ctrl-C. Raises DemoError where something ends by itself."""
    screen.say("")
    for name, where in (
        ("console", f"{stage.admin}/"),
        ("the product", f"{stage.front}/api/posts"),
        ("metrics", f"{stage.admin}/metrics"),
        ("legacy alone", stage.backends["legacy"]),
        ("new alone", stage.backends["new"]),
        ("folder", str(stage.folder)),
    ):
        screen.say(f"   {name:14} {where}")
    ours = Path(sys.executable).with_name("crossfade")
    screen.say(f"   to go on       cd {stage.folder} && {ours} cutover back --reason 'once more'")
    screen.talk("running until Ctrl-C or SIGTERM")
    try:
        stage.wait_for_ever()
    except KeyboardInterrupt:
        screen.talk("stopped")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
