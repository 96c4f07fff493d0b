"""Before a judgement the chat says how many labelled cases it lacks, whichever way it is asked."""

from collections.abc import Callable
from typing import Any

import pytest

from schemas.tables import Case, RegisteredModel
from schemas.vocabulary import Status

Hospital = Any


def label(hospital: Hospital, count: int) -> None:
    """So many labelled cases of patients who raise alarms, and two that wait for a label."""
    now = hospital.clock.now()
    with hospital.database.transaction() as tx:
        for number in range(count + 2):
            joined = {"truth": "a", "state": "joined", "joined_at": now} if number < count else {}
            key = f"{number:032x}"
            tx.session.add(
                Case(
                    study_key=key,
                    model="brain_mri",
                    version=1,
                    task="tumour",
                    patient_key=key,
                    role="trigger",
                    predicted="a",
                    probabilities={"a": 0.9, "b": 0.1},
                    acquired_at=now,
                    scored_at=now,
                    **joined,
                )
            )


@pytest.mark.parametrize(
    "question",
    [
        "how are things?",
        "how is brain mri doing?",
        "why did brain_mri decline?",
        "status of all models",
        "how many labels are missing for brain?",
    ],
)
def test_before_the_first_evaluation_the_missing_labels_are_told(hospital: Hospital, question: str) -> None:
    label(hospital, 37)
    reply = hospital.say(question).reply
    assert "37 of 100 labelled cases for the first evaluation, 63 missing (about 158 labels, as other" in reply
    assert "2 scored studies wait for a label" in reply
    assert "evaluated yet" in reply or "For a repair: 0 cases to train on" in reply


def test_a_site_with_another_batch_size_is_told_its_own(sqlite_database: Any, make_hospital: Callable[..., Hospital]) -> None:
    small = make_hospital(sqlite_database, join={"batch_size": 40})
    assert (
        "0 of 40 labelled cases for the first evaluation, 40 missing (about 100 labels, as other"
        in small.say("how are things?").reply
    )


def test_after_an_evaluation_it_is_the_next_one(hospital: Hospital) -> None:
    label(hospital, 3)
    hospital.evaluation(Status.HEALTHY)
    day = f"{hospital.clock.now():%Y-%m-%d}"
    assert (
        f"healthy since {day}; 3 of 100 labelled cases for the next evaluation, 97 missing" in hospital.say("how are things?").reply
    )
    assert "Labels: 3 of 100 labelled cases for the next evaluation" in hospital.say("how is brain mri doing?").reply


def test_a_model_without_a_version_lacks_none(hospital: Hospital) -> None:
    with hospital.database.transaction() as tx:
        tx.session.get_one(RegisteredModel, "chest_xray").champion = None
    assert "chest_xray (tumour): no version yet, not evaluated yet\n" in hospital.say("how are things?").reply + "\n"


def test_what_waits_for_approval_is_told_with_the_models(sqlite_database: Any, make_hospital: Callable[..., Hospital]) -> None:
    careful = make_hospital(sqlite_database, policy={"approve_remedies": True})
    careful.cases(tune=60, gate=40)
    careful.handle(careful.evaluation())
    (row,) = [each for each in careful.orders() if each.kind == "remedy"]
    assert f"Waits for approval: {row.order_id}: remedy" in careful.say("how are things?").reply
