"""Dead letters at the command line: seen, replayed, discarded with a reason."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import select

from schemas.tables import Audit, DeadLetter, Inbox
from services.runtime.service import Context

Reclaim = Callable[..., Any]


@pytest.fixture
def letters(site: Context) -> list[int]:
    with site.database.transaction() as tx:
        for number in range(3):
            origin = {
                "topic": "label.received.v1",
                "partition": 0,
                "offset": number,
                "key": "k",
                "headers": {"ce_id": f"e{number}"},
            }
            why = {"error": "InvalidInput", "reason": "no class [of] the task", "created_at": tx.clock.now()}
            row = DeadLetter(consumer="ground_truth", event_id=f"e{number}", body=b'{"label": "x"}', **origin, **why)
            tx.session.add(row)
    with site.database.read() as session:
        return [row.id or 0 for row in session.exec(select(DeadLetter).order_by(DeadLetter.id))]


def test_show_tells_why_and_what(reclaim: Reclaim, letters: list[int]) -> None:
    said = reclaim("dead-letters", "show", str(letters[0]))
    assert said.code == 0
    for part in ("no class [of] the task", "ground_truth", "label.received.v1", '"label": "x"', "waits"):
        assert part in said.text


def test_a_discarded_letter_waits_no_more_and_its_reason_is_audited(reclaim: Reclaim, site: Context, letters: list[int]) -> None:
    assert reclaim("dead-letters", "discard", str(letters[1]), "--reason", "a test study").code == 0
    assert f"│ {letters[1]} " not in reclaim("dead-letters", "list").text
    assert "discarded" in reclaim("dead-letters", "list", "--all").text
    with site.database.read() as session:
        audited = session.exec(select(Audit).where(Audit.action == "dead_letter.discarded")).one()
    assert audited.detail["why"] == "a test study"
    assert audited.actor.startswith("user:")
    assert "does not wait" in reclaim("dead-letters", "discard", str(letters[1]), "--reason", "again").text
    assert "2 messages put back" in reclaim("dead-letters", "replay", "--all").text
    assert "1 message put back" in reclaim("dead-letters", "replay", str(letters[1])).text, "by its id it comes back"


@pytest.mark.parametrize("command", [("show",), ("replay",), ("discard", "--reason", "r")])
def test_an_unknown_id_is_answered_with_those_that_wait(reclaim: Reclaim, letters: list[int], command: tuple[str, ...]) -> None:
    said = reclaim("dead-letters", command[0], "4711", *command[1:])
    assert said.code == 2
    assert f"waiting are {letters[2]}, {letters[1]}, {letters[0]}" in said.text


def test_discarding_takes_a_reason(reclaim: Reclaim, letters: list[int]) -> None:
    assert reclaim("dead-letters", "discard", str(letters[0]), "--reason", "  ").code == 2
    assert reclaim("dead-letters", "discard", str(letters[0])).code == 2


def test_replay_without_a_service_says_so_at_once(reclaim: Reclaim, letters: list[int]) -> None:
    said = reclaim("dead-letters", "replay", "--all")
    assert (said.code, "3 messages put back" in said.text) == (0, True)
    assert "not running" in said.text
    assert "reclaim up" in said.text


@pytest.mark.usefixtures("running")
def test_replay_with_a_service_says_what_came_of_each(reclaim: Reclaim, site: Context, letters: list[int]) -> None:
    """A consumer deals with the first, rejects the second, and has not come to the third."""

    def consume() -> None:
        wanted = time.monotonic() + 20
        while time.monotonic() < wanted:
            with site.database.transaction() as tx:
                first, second, _ = tx.session.exec(select(DeadLetter).order_by(DeadLetter.id)).all()
                if first.replayed_at is None:
                    continue
                tx.session.add(Inbox(consumer=first.consumer, event_id=f"replay-{first.id}-1", handled_at=tx.clock.now()))
                second.replayed_at = None
                tx.session.add(second)
            return

    thread = threading.Thread(target=consume)
    thread.start()
    said = reclaim("dead-letters", "replay", "--all", "--wait", "2")
    thread.join()
    assert said.code == 1
    assert "not running" not in said.text
    for words in ("3 messages put back", "1 dealt with", "1 failed again", "1 on its way", "`reclaim dead-letters list` says why"):
        assert words in said.text
    assert "waits, failed 2 times" in reclaim("dead-letters", "list").text
