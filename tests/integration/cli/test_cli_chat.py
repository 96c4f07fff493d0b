"""The console chat when nobody would answer."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import select

from schemas.tables import Outbox
from services.runtime.service import Context

Reclaim = Callable[..., Any]


@pytest.mark.parametrize("question", [("how is lung?",), ()])
def test_without_a_service_the_chat_says_so_at_once(reclaim: Reclaim, site: Context, question: tuple[str, ...]) -> None:
    began = time.monotonic()
    said = reclaim("chat", *question)
    assert said.code == 75
    assert "reclaim up" in said.text
    assert time.monotonic() - began < 20
    with site.database.read() as session:
        assert session.exec(select(Outbox)).all() == [], "what nobody hears is not sent"


@pytest.mark.usefixtures("running")
def test_with_a_service_the_question_is_sent(reclaim: Reclaim, site: Context) -> None:
    said = reclaim("chat", "how is lung?", "--timeout", "1")
    assert "No answer within 1 s" in said.text
    with site.database.read() as session:
        assert len(session.exec(select(Outbox)).all()) == 1
