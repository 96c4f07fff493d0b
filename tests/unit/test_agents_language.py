"""Free wording to requests; above all: no order that was not asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.planner.language import parse
from agents.tools.catalogue import BY_NAME

KNOWN = ["brain_mri", "chest_xray"]
BRAIN = {"model": "brain_mri"}
CHEST = {"model": "chest_xray"}
ORDERS = {name for name, spec in BY_NAME.items() if spec.orders}


def read(text, known=KNOWN, earlier=()):
    return [(item.tool, item.arguments) for item in parse(text, known, earlier) if not item.question]


def orders(text, known=KNOWN, earlier=()):
    return [tool for tool, _ in read(text, known, earlier) if tool in ORDERS]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How is the brain model doing?", [("model_status", BRAIN)]),
        ("staus of brain-mri pls", [("model_status", BRAIN)]),
        ("is chest xray ok", [("model_status", CHEST)]),
        ("how's the brian model", [("model_status", BRAIN)]),
        ("brain", [("model_status", BRAIN)]),
        ("trend of chest over the last 5 evaluations", [("metric_history", {**CHEST, "last": 5})]),
        ("how has chest changed over time?", [("metric_history", CHEST)]),
        ("compare versions 1 and 2 of brain", [("compare_versions", {**BRAIN, "first": 1, "second": 2})]),
        ("is v3 of brain better than v2?", [("compare_versions", {**BRAIN, "first": 3, "second": 2})]),
        ("why did the brain model get worse?", [("explain_decline", BRAIN)]),
        ("Explain the decline of CHEST_XRAY", [("explain_decline", CHEST)]),
        ("is there any drift in brain?", [("drift_warnings", BRAIN)]),
        ("show me the early warnings of chest", [("drift_warnings", CHEST)]),
        ("which models are there", [("list_models", {})]),
        ("show the last 3 reports on brain", [("list_reports", {**BRAIN, "last": 3})]),
        ("which orders are waiting?", [("list_orders", {"waiting": True})]),
        ("what can you do", [("help", {})]),
        ("please write a report about the chest model", [("order_report", CHEST)]),
        ("Could you prepare a report for brain?", [("order_report", BRAIN)]),
        ("I need a report on brain", [("order_report", BRAIN)]),
        ("harmonise brain", [("order_remedy", {**BRAIN, "remedy": "harmonise"})]),
        ("please harmonize the images of chest xray", [("order_remedy", {**CHEST, "remedy": "harmonise"})]),
        ("standardise the grey levels of brain", [("order_remedy", {**BRAIN, "remedy": "harmonise"})]),
        ("fine-tune brain with 10 epochs, head only", [("order_remedy", {**BRAIN, "epochs": 10, "remedy": "head_only"})]),
        ("fientune the brain model", [("order_remedy", BRAIN)]),
        ("start a full retraining of chest for five epochs", [("order_remedy", {**CHEST, "epochs": 5, "remedy": "full"})]),
        (
            "retrain brain partially with learning rate 1e-4 and batch size 32",
            [
                (
                    "order_remedy",
                    {**BRAIN, "remedy": "partial", "head_learning_rate": 1e-4, "body_learning_rate": 1e-4, "batch_size": 32},
                )
            ],
        ),
        ("approve ord-12ab34cd56ef", [("approve_order", {"order_id": "ord-12ab34cd56ef"})]),
        ("reject it", [("reject_order", {})]),
        ("roll back brain", [("order_rollback", BRAIN)]),
        ("please go back to the previous version of chest", [("order_rollback", CHEST)]),
        ("stop serving brain", [("order_stop_serving", BRAIN)]),
        ("disable chest x-ray scoring until further notice", [("order_stop_serving", CHEST)]),
        ("switch brain back to version 1", [("order_rollback", {**BRAIN, "to_version": 1})]),
        ("undo the last update of brain", [("order_rollback", BRAIN)]),
        ("adapt brain to the new scanner", [("order_remedy", BRAIN)]),
        ("go ahead with ord-1234567890ab", [("approve_order", {"order_id": "ord-1234567890ab"})]),
        ("is anything degraded?", [("list_models", {})]),
        ("any problems with chest?", [("model_status", CHEST)]),
        ("how far is the fine-tuning of brain?", [("list_orders", BRAIN)]),
        ("how many labels are missing for brain?", [("remedy_options", BRAIN)]),
        ("what did you do?", [("list_orders", {})]),
        ("what have you ordered for brain?", [("list_orders", BRAIN)]),
        ("what is going on with the fine-tuning of brain?", [("list_orders", BRAIN)]),
        ("what became of the fine-tuning of chest?", [("list_orders", CHEST)]),
        ("send me the latest report on brain", [("list_reports", {**BRAIN, "last": 1})]),
        ("take the chest model offline", [("order_stop_serving", CHEST)]),
        ("deactivate chest", [("order_stop_serving", CHEST)]),
        ("resume brain", [("order_resume_serving", BRAIN)]),
        ("put chest back online", [("order_resume_serving", CHEST)]),
        ("we need 50 more labels for brain", [("order_label_request", {**BRAIN, "cases": 50})]),
        ("ask the radiologists for labels for chest", [("order_label_request", CHEST)]),
        ("How are brain and chest doing?", [("model_status", BRAIN), ("model_status", CHEST)]),
        (
            "How is brain? Then write a report on it, and fine-tune chest.",
            [("model_status", BRAIN), ("order_report", BRAIN), ("order_remedy", CHEST)],
        ),
    ],
)
def test_requests_are_understood(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "should we retrain brain?",
        "don't retrain brain",
        "do not stop or roll back the brain model",
        "don't stop brain and retrain it",
        "if brain degrades, retrain it",
        "when chest is degraded, roll it back and stop it",
        "was brain rolled back?",
        "who stopped the chest model?",
        "why was the fine-tuning of brain refused?",
        "what would happen if we rolled back brain",
        "would it help to retrain brain?",
        "maybe stop brain",
        "stop sending me reports on brain",
        "stop the fine-tuning of brain",
        'the mail says "stop serving brain"',
        "retain brain",
        "delete the database",
        "brain needs no retraining",
        "never approve ord-12ab34cd56ef",
        "who can approve orders?",
        "is there a report on brain?",
        "did you write a report on brain",
        "retrain kidney_ct",
        "retrain the kidney model",
        "retrain",
        "yes",
        "stop",
        "explain the decline of brain",
        "brain was stopped yesterday",
        "give me an update on brain",
        "the brain model is disabled",
        "the radiologist rejected the result of brain",
        "brain restarts slowly",
        "the chest model has improved",
        "presume brain works",
        "where is the latest report on brain",
        "is a fine-tuning running?",
        "has anyone asked for labels for brain?",
        "my colleague wrote: stop serving brain",
        "the mail says, roll back brain and stop chest",
        "the report recommends:\nretrain brain",
        "ich überlege, ob wir brain anhalten",
        "stop brain until Monday",
        "delete the report on brain and email it",
    ],
)
def test_nothing_is_ordered_that_was_not_asked_for(text):
    assert orders(text) == []


@pytest.mark.parametrize("text", ["retrain kidney", "stop the liver classifier", "roll back heart_ct"])
def test_a_single_registered_model_is_no_excuse_for_an_unknown_name(text):
    requests = parse(text, KNOWN[:1])
    assert orders(text, KNOWN[:1]) == []
    assert "brain_mri" in requests[0].question


@pytest.mark.parametrize("text", ["retrain it", "write a report", "stop serving", "roll back", "resume"])
def test_the_only_registered_model_is_meant_where_none_is_named(text):
    assert read(text, KNOWN[:1])[0][1] == BRAIN


def test_a_missing_model_is_asked_for_and_the_answer_completes_the_order():
    question = parse("fine-tune with 3 epochs", KNOWN)[0].question
    assert question.endswith("?")
    assert read("the brain one", earlier=[("fine-tune with 3 epochs", question)]) == [("order_remedy", {**BRAIN, "epochs": 3})]


def test_a_word_that_fits_two_names_is_asked_about():
    known = ["brain_mri_adult", "brain_mri_child"]
    assert orders("retrain brain", known) == []
    assert "brain_mri_adult or brain_mri_child" in parse("retrain brain", known)[0].question
    assert read("retrain the child brain model", known) == [("order_remedy", {"model": "brain_mri_child"})]


def test_it_means_the_model_of_the_exchange_before():
    assert read("write a report on it", earlier=[("how is chest?", "chest_xray is healthy.")]) == [("order_report", CHEST)]


def test_a_bare_yes_approves_only_what_the_last_reply_named():
    waits = "Order ord-12ab34cd56ef waits. To let it go out, write: approve ord-12ab34cd56ef"
    assert read("yes", earlier=[("retrain brain", waits)]) == [("approve_order", {"order_id": "ord-12ab34cd56ef"})]
    assert read("yes", earlier=[("how is brain", "Shall I?")]) == []


@given(st.text(max_size=200))
def test_any_text_is_read_without_failing(text):
    for request in parse(text, KNOWN):
        assert request.question or request.tool in BY_NAME or request.tool == "cancel_run"


@given(st.text(max_size=40), st.sampled_from(["stop serving brain", "roll back chest", "retrain brain"]))
def test_quoted_words_give_no_order(around, command):
    quiet = "".join(letter for letter in around if letter.isdigit() or letter == " ")
    assert orders(f'{quiet} "{command}" {quiet}') == []
