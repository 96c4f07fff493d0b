"""Common typos, and the simple German and French of the existing requests; again: no order that was not asked for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.planner.foreign import to_english
from agents.planner.language import WELCOME, parse
from agents.tools.catalogue import BY_NAME
from agents.tools.story import Repair

KNOWN = ["brain_mri", "chest_xray"]
BRAIN, CHEST = {"model": "brain_mri"}, {"model": "chest_xray"}
ORDER = {"order_id": "ord-1a2b3c4d5e6f"}


def read(text, known=KNOWN, earlier=()):
    return [(item.tool, item.arguments) for item in parse(text, known, earlier) if not item.question]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stauts of brain", ("model_status", BRAIN)),
        ("how si brain doing", ("model_status", BRAIN)),
        ("hows chest", ("model_status", CHEST)),
        ("whats up with brain", ("model_status", BRAIN)),
        ("brain?", ("model_status", BRAIN)),
        ("shwo models", ("list_models", {})),
        ("lsit the models", ("list_models", {})),
        ("show me everything", ("list_models", {})),
        ("reprot on brain", ("order_report", BRAIN)),
        ("wirte a report on brain", ("order_report", BRAIN)),
        ("roll bakc brain", ("order_rollback", BRAIN)),
        ("roll brain back", ("order_rollback", BRAIN)),
        ("rollback brain to 1", ("order_rollback", {**BRAIN, "to_version": 1})),
        ("put brain back to v1", ("order_rollback", {**BRAIN, "to_version": 1})),
        ("stpo brain", ("order_stop_serving", BRAIN)),
        ("sotp serving brain", ("order_stop_serving", BRAIN)),
        ("resum brain", ("order_resume_serving", BRAIN)),
        ("finetun brain", ("order_remedy", BRAIN)),
        ("retrain brain wiht 5 epcohs", ("order_remedy", {**BRAIN, "epochs": 5})),
        ("50 more lables for brain", ("order_label_request", {**BRAIN, "cases": 50})),
        ("rejcet ord-1a2b3c4d5e6f", ("reject_order", ORDER)),
        ("hlep", ("help", {})),
        ("helo", ("help", {})),
        ("waht happened to brain", ("explain_decline", BRAIN)),
        ("trned of brain", ("metric_history", BRAIN)),
        ("ordres waiting", ("list_orders", {"waiting": True})),
        ("is anything waiting for me", ("list_orders", {"waiting": True})),
    ],
)
def test_common_typos_and_short_forms(text, expected):
    assert read(text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wie geht es dem Brain-Modell?", ("model_status", BRAIN)),
        ("Wie geht's brain?", ("model_status", BRAIN)),
        ("wie läuft chest", ("model_status", CHEST)),
        ("Zustand von brain bitte", ("model_status", BRAIN)),
        ("ist brain in Ordnung?", ("model_status", BRAIN)),
        ("Wie hat sich brain entwickelt?", ("metric_history", BRAIN)),
        ("Verlauf von chest über die letzten 5 Auswertungen", ("metric_history", {**CHEST, "last": 5})),
        ("Vergleiche Version 1 und 2 von brain", ("compare_versions", {**BRAIN, "first": 1, "second": 2})),
        ("Warum ist brain schlechter geworden?", ("explain_decline", BRAIN)),
        ("Was ist mit brain passiert?", ("explain_decline", BRAIN)),
        ("Welche Modelle gibt es?", ("list_models", {})),
        ("Zeige die letzten 3 Berichte zu brain", ("list_reports", {**BRAIN, "last": 3})),
        ("Welche Aufträge warten?", ("list_orders", {"waiting": True})),
        ("Schreibe bitte einen Bericht über chest", ("order_report", CHEST)),
        ("schriebe enien Berciht über brain", ("order_report", BRAIN)),
        ("Wir brauchen 50 Labels für brain", ("order_label_request", {**BRAIN, "cases": 50})),
        ("Fordere 50 weitere Labels für brain an", ("order_label_request", {**BRAIN, "cases": 50})),
        ("Trainiere brain mit 10 Epochen nach, nur der Kopf", ("order_remedy", {**BRAIN, "epochs": 10, "remedy": "head_only"})),
        ("Kannst du bitte brain nachtrainieren?", ("order_remedy", BRAIN)),
        ("Genehmige ord-1a2b3c4d5e6f", ("approve_order", ORDER)),
        ("Lehne ord-1a2b3c4d5e6f ab", ("reject_order", ORDER)),
        ("Rolle brain zurück", ("order_rollback", BRAIN)),
        ("Setze brain auf Version 1 zurück", ("order_rollback", {**BRAIN, "to_version": 1})),
        ("Stelle chest zurück auf Version 2", ("order_rollback", {**CHEST, "to_version": 2})),
        ("Stoppe brain", ("order_stop_serving", BRAIN)),
        ("Stopp das Brain-Modell", ("order_stop_serving", BRAIN)),
        ("Brain stoppen", ("order_stop_serving", BRAIN)),
        ("Nimm chest vom Netz", ("order_stop_serving", CHEST)),
        ("schalte chest wieder ein", ("order_resume_serving", CHEST)),
        ("Was kannst du?", ("help", {})),
        ("Hallo", ("help", {})),
        ("comment va brain ?", ("model_status", BRAIN)),
        ("quels modèles y a-t-il", ("list_models", {})),
        ("écris un rapport sur chest", ("order_report", CHEST)),
        ("réentraîne brain avec 5 époques", ("order_remedy", {**BRAIN, "epochs": 5})),
        ("reviens à la version précédente de brain", ("order_rollback", BRAIN)),
        ("demande 50 étiquettes pour brain", ("order_label_request", {**BRAIN, "cases": 50})),
    ],
)
def test_simple_german_and_french(text, expected):
    assert read(text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "Trainiere brain nicht nach",
        "stoppe brain nicht",
        "sollen wir brain nachtrainieren?",
        "soll ich brain stoppen?",
        "wenn brain schlechter wird, trainiere es nach",
        "falls nötig, stoppe brain",
        "vielleicht brain stoppen",
        "Wurde brain zurückgerollt?",
        "wer hat brain gestoppt",
        "keine Labels für brain anfordern",
        "die Mail sagt „stoppe brain“",
        "trainiere niere nach",
        "trainiere das Nierenmodell neu",
        "lösche die Datenbank",
        "n'arrête pas brain",
        "faut-il réentraîner brain ?",
        "low dose form of brain",
        "the radiologist spotted brain",
    ],
)
def test_no_order_that_was_not_asked_for(text):
    assert [tool for tool, _ in read(text) if BY_NAME[tool].orders] == []


@pytest.mark.parametrize("text", ["stop", "stopp", "stoppe", "stoppen", "halt", "deaktiviere", "abschalten", "arrête", "zurück"])
def test_a_bare_word_stops_nothing_where_there_is_one_model(text):
    assert [tool for tool, _ in read(text, KNOWN[:1]) if BY_NAME[tool].orders] == []


def test_a_missing_model_is_asked_for_in_german_too_and_the_answer_completes_the_order():
    question = parse("Trainiere mit 3 Epochen nach", KNOWN)[0].question
    assert question.endswith("?")
    assert read("das Brain-Modell", earlier=[("Trainiere mit 3 Epochen nach", question)]) == [
        ("order_remedy", {**BRAIN, "epochs": 3})
    ]


@pytest.mark.parametrize("word", ["yes", "ja", "oui", "ja bitte"])
def test_yes_in_three_languages(word):
    waits = "Order ord-12ab34cd56ef waits. To let it go out, write: approve ord-12ab34cd56ef"
    assert read(word, earlier=[("retrain brain", waits)]) == [("approve_order", {"order_id": "ord-12ab34cd56ef"})]


@pytest.mark.parametrize("word", ["thanks", "thank you!", "danke", "merci"])
def test_thanks_are_answered(word):
    assert [item.question for item in parse(word, KNOWN)] == [WELCOME]


def test_a_model_that_is_named_with_a_german_word_keeps_its_name():
    assert read("Wie geht es bericht?", ["bericht", "brain_mri"]) == [("model_status", {"model": "bericht"})]


@pytest.mark.parametrize("text", ["how is the brain model doing?", "compare versions 1 and 2", "please write a report on chest"])
def test_english_stays_as_it_is(text):
    assert to_english(text, set()) == text


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_put_into_english_without_failing(text):
    assert isinstance(to_english(text, set()), str)


def test_a_repair_that_was_not_judged_is_told_by_the_cases_it_was_made_from():
    repair = Repair(
        ordered_at="14 March 2026",
        by="the agents",
        remedy="adapt the network to the look of the new images",
        state="done",
        verdict="reject",
        challenger=2,
        judged=False,
        gate_cases=293,
        wins=5,
        losses=1,
    )
    assert repair.say().endswith(
        "That gave back too little to be judged: of the 293 cases it was made from, "
        "version 2 read 5 better and 1 worse than the old one."
    )
