"""The console: one question, and a conversation."""

import io
import threading
from datetime import timedelta

import pytest
from rich.console import Console

from listeners.chat.console import converse, say
from listeners.chat.conversation import ask, await_reply
from schemas.tables import Lease
from schemas.topics import AGENT_COMMAND
from schemas.vocabulary import UserRole
from services.runtime.consumer import process
from services.runtime.errors import InvalidInput
from services.runtime.identity import Pseudonyms
from services.runtime.messages import Record
from services.runtime.outbox import RELAY
from services.runtime.service import Context


@pytest.fixture
def context(hospital):
    hospital.settings.state_dir.mkdir(parents=True, exist_ok=True)
    return Context(hospital.settings, hospital.database, hospital.clock, Pseudonyms(b"k" * 32))


@pytest.fixture
def agents(hospital):
    """The agents' service in the background: handles each command once."""
    stop = threading.Event()
    with hospital.database.transaction() as tx:  # as beside a relay that is at work
        tx.session.add(Lease(name=RELAY, owner="test", expires_at=tx.clock.now() + timedelta(days=1)))

    def work() -> None:
        while not stop.wait(0.02):
            for row in hospital.outbox(AGENT_COMMAND):
                process(hospital.database, hospital.consumer(), [Record(row.topic, 0, row.id, row.key, row.headers, row.body)])

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join(10)


def test_a_single_question(context, agents):
    out = io.StringIO()
    assert say(context, "list models", 20, Console(file=out)) == 0
    assert "brain_mri (tumour)" in out.getvalue()


def test_without_the_service_the_question_is_kept(context):
    out = io.StringIO()
    assert say(context, "list models", 0.2, Console(file=out)) == 1
    assert "will be answered" in out.getvalue()


def test_a_conversation_goes_on_until_exit(context, agents):
    out, lines = io.StringIO(), iter(["list models", "", "help", "exit"])
    assert converse(context, 20, Console(file=out, width=200), lambda _prompt: next(lines)) == 0
    assert "brain_mri (tumour)" in out.getvalue()
    assert next(lines, None) is None


def test_the_console_speaks_as_admin_under_the_logins_name(context, hospital):
    say(context, "help", 0, Console(file=io.StringIO()))
    body = hospital.outbox(AGENT_COMMAND)[0].body.decode()
    assert '"user_role":"admin"' in body


@pytest.mark.parametrize("text", ["", "  ", "x" * 4001])
def test_what_is_no_message_is_not_sent(context, hospital, text):
    with pytest.raises(InvalidInput):
        ask(context, text, "ada", UserRole.VIEWER, "t", "console")
    assert hospital.outbox(AGENT_COMMAND) == []


def test_uids_in_typed_text_do_not_leave_the_console(context, hospital):
    ask(context, "what about 1.2.840.113619.2.55.3.1234", "ada", UserRole.VIEWER, "t", "console")
    assert b"113619" not in hospital.outbox(AGENT_COMMAND)[0].body


def test_await_reply_gives_up_in_time(context):
    assert await_reply(context, "no such command", 0.1) is None
