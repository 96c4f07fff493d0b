"""An order with a word in it that nobody can explain is not given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.planner.language import parse
from agents.tools.catalogue import BY_NAME

KNOWN = ["brain_mri", "breast_mg", "chest_xray", "knee_mri"]
PLAIN = {
    "retrain brain_mri": "order_remedy",
    "roll back knee": "order_rollback",
    "stop serving chest x-ray": "order_stop_serving",
    "resume serving breast_mg": "order_resume_serving",
    "write a report on brain": "order_report",
    "ask for 20 labels for knee": "order_label_request",
    "approve ord-1a2b3c4d5e6f": "approve_order",
    "reject ord-1a2b3c4d5e6f": "reject_order",
    "Trainiere knee_mri nach": "order_remedy",
    "Arrête chest_xray": "order_stop_serving",
}


def orders(text):
    return [item.tool for item in parse(text, KNOWN) if not item.question and BY_NAME[item.tool].orders]


@pytest.mark.parametrize(("text", "tool"), PLAIN.items())
def test_plain_orders_are_given(text, tool):
    assert orders(text) == [tool]


@given(st.sampled_from(list(PLAIN)), st.text("qxzvjw", min_size=4, max_size=9), st.booleans())
def test_an_unknown_word_before_or_after_keeps_an_order_back(command, word, first):
    assert orders(f"{word} {command}" if first else f"{command} {word}") == []


@pytest.mark.parametrize(
    "text",
    [
        "Bevor wir knee_mri neu trainieren, warten wir noch ab",
        "make breast_mg run twice as fast",
        "hypothetically retrain brain_mri",
        "the vendor will retrain brain_mri",
        "brain_mri rollback rehearsal exercise",
        "Demain matin on verra si on arrête chest_xray",
    ],
)
def test_half_understood_sentences_order_nothing(text):
    assert orders(text) == []


def test_the_word_is_named():
    (request,) = parse("hypothetically retrain brain_mri", KNOWN)
    assert "'hypothetically'" in request.question


def test_a_reason_may_hold_any_word():
    assert orders("retrain brain_mri because the gantry firmware wobbles") == ["order_remedy"]
