"""A conversation at the console tells what comes to its thread: progress, verdicts, late answers."""

import io
import threading
from datetime import timedelta

import pytest
from rich.console import Console

from listeners.chat.cards import Button, Card, card_lines
from listeners.chat.console import converse
from schemas.tables import Lease
from services.remediation import jobs
from services.runtime.outbox import RELAY
from tests.chat_world import Site
from tests.integration.chat.test_chat_threads import told


@pytest.fixture
def site(sqlite_database, clock, tmp_path):
    site = Site.of(sqlite_database, clock, tmp_path / "state")
    with site.database.transaction() as tx:  # as beside a relay that is at work
        tx.session.add(Lease(name=RELAY, owner="test", expires_at=tx.clock.now() + timedelta(days=1)))
    return site


class Typist:
    """Types lines; before some of them something happens at the site."""

    def __init__(self, *lines) -> None:
        self.lines = list(lines)

    def __call__(self, _prompt: str) -> str:
        line = self.lines.pop(0)
        if callable(line):
            line()
            return ""
        return line


@pytest.fixture
def answers(site):
    """The agents and the courier in the background."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            site.pump()

    thread = threading.Thread(target=work)
    thread.start()

    def rest() -> None:
        stop.set()
        thread.join(20)

    yield rest
    rest()


def conversation(site, *lines, timeout_s=20):
    out = io.StringIO()
    assert converse(site.context, timeout_s, Console(file=out, width=200), Typist(*lines, "exit")) == 0
    return out.getvalue()


def test_progress_and_end_of_a_run_are_told_once(site, answers):
    claims = []

    def begins() -> None:
        answers()
        claims.append(site.start_job(site.orders()[0].order_id))
        told(site, claims[0], "learning from 3 studies")
        told(site, claims[0], "", epoch=3, epochs=8)
        site.pump()

    def ends() -> None:
        told(site, claims[0], "", epoch=5, epochs=8)
        with site.database.transaction() as tx:
            jobs.succeed(tx, claims[0], {}, "Done.")
        site.pump()

    said = conversation(site, "fine-tune brain", begins, ends, "")
    assert said.count("is accepted and on its way") == 1
    assert said.count("learning from 3 studies") == 1
    assert said.index("epoch 3 of 8") < said.index("finished") < said.index("Done.")
    assert said.count("Done.") == 1


def test_an_answer_that_came_too_late_is_told_when_it_is_there(site):
    said = conversation(site, "list models", site.pump, timeout_s=0.2)
    assert said.index("No answer within") < said.index("brain_mri (tumour)")


def test_an_answer_that_was_waited_for_is_not_told_again(site, answers):
    def settle() -> None:
        answers()
        site.pump()

    assert conversation(site, "list models", settle, "").count("brain_mri (tumour)") == 1


def test_a_card_is_told_line_by_line_with_the_words_that_decide():
    button = Button(label="Approve", order_id="ord-1a2b3c4d5e6f", approve=True)
    card = Card(title="Waits", text="one\ntwo", facts=(("reason", "it fell"),), buttons=(button,))
    assert card_lines(card) == ["Waits", "one", "two", "reason: it fell", "to approve it, write: approve ord-1a2b3c4d5e6f"]
