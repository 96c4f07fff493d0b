"""Which cases a run uses, what an order may set, and what may follow what in a job's life."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data import LabelledStudy
from models.errors import InvalidDataset
from models.remedies import EXECUTABLE
from models.spec import ModelSpec, PreprocessingSpec
from schemas.settings import Settings
from schemas.vocabulary import JobState, Remedy
from services.remediation import data
from services.remediation.gate import Rules
from services.remediation.options import (
    BODY_RATE,
    PLAN,
    first_body_rate,
    in_effect,
    options_of,
    repair_settings,
    require_executable,
)
from services.remediation.plan import (
    LabelledCase,
    Plan,
    SharedPatient,
    TooFew,
    choose,
    from_json,
    looks,
    require_disjoint,
    start_of_decline,
    to_json,
)
from services.remediation.provenance import data_digest
from services.remediation.states import TRANSITIONS, JobEvent, after
from services.runtime.change_plans import read_plan, require_planned
from services.runtime.errors import InvalidInput
from services.runtime.transitions import ImpossibleTransition

START = datetime(2026, 3, 1, tzinfo=UTC)


def case(number: int, patient: str | None = None, day: int | None = None) -> LabelledCase:
    at = START + timedelta(days=number if day is None else day)
    return LabelledCase(f"study{number:03d}", patient or f"patient{number}", "a", at)


def chosen(tune: list[LabelledCase], gate: list[LabelledCase], **changes: object) -> Plan | TooFew:
    options: dict = {"classes": ("a", "b"), "taken": set(), "since": None, "min_tune": 2, "min_gate": 2, "most": 100} | changes
    return choose(3, tune, gate, **options)


def test_cases_before_the_decline_and_taken_patients_are_left_out() -> None:
    tune, gate = [case(n) for n in range(10)], [case(n) for n in range(20, 30)]
    plan = chosen(tune, gate, since=START + timedelta(days=4), taken={"patient5", "patient25"})
    assert isinstance(plan, Plan)
    assert [each.study_key for each in plan.tune] == ["study004", "study006", "study007", "study008", "study009"]
    assert "study025" not in [each.study_key for each in plan.gate]
    assert plan.champion == 3


def test_the_newest_cases_are_used() -> None:
    plan = chosen([case(n) for n in range(10)], [case(n) for n in range(20, 30)], most=3)
    assert isinstance(plan, Plan)
    assert [each.study_key for each in plan.tune] == ["study007", "study008", "study009"]


def test_too_few_cases_say_how_many_are_missing() -> None:
    few = chosen([case(1)], [case(2)], min_tune=40, min_gate=1)
    assert isinstance(few, TooFew)
    assert few.missing == {"tune": 39, "gate": 0}
    assert "40" in few.reason


def test_labels_of_no_class_are_left_out_and_counted_where_a_repair_would_have_used_them() -> None:
    strange = [replace(case(n), truth="meningioma") for n in range(4, 7)]
    tune, gate = [case(n) for n in range(4)] + strange, [case(n) for n in range(20, 24)]
    plan = chosen(tune, gate, taken={"patient5"})
    assert isinstance(plan, Plan)
    assert ({each.truth for each in plan.tune}, plan.foreign) == ({"a"}, 2)
    few = chosen(strange, gate)
    assert isinstance(few, TooFew)
    assert (few.tune, few.foreign) == (0, 3)
    assert "no class of the model and were left out: 3." in few.reason
    assert "left out" not in chosen([], gate).reason


def test_a_study_whose_label_is_no_class_is_named_not_trained_on() -> None:
    spec = ModelSpec(name="tumour", task="tumour", classes=("none", "glioma"), preprocessing=PreprocessingSpec(), modality="MR")
    with pytest.raises(InvalidDataset, match="study s1: its label is no class of tumour; these are none, glioma"):
        data.load([LabelledStudy("s1", (), "meningioma", "p1")], spec, None)


@given(st.permutations(range(12)))
def test_the_order_of_arrival_makes_no_difference(order: list[int]) -> None:
    tune, gate = [case(n) for n in order], [case(n + 20) for n in order]
    first, again = chosen(tune, gate, most=7), chosen(sorted(tune, key=str), gate, most=7)
    assert isinstance(first, Plan)
    assert first == again
    assert first.digest == again.digest


def test_the_plan_survives_the_database() -> None:
    plan = Plan(1, (case(1), case(2)), (case(3),), START, 7)
    assert from_json(to_json(plan)) == plan
    assert from_json(to_json(Plan(1, (), (), None))) == Plan(1, (), (), None)
    assert Plan(1, (case(1),), (), None).digest != Plan(1, (case(2),), (), None).digest


def test_the_data_digest_covers_manifest_files_and_chosen_cases(tmp_path: Path) -> None:
    manifest, image = tmp_path / "manifest.csv", tmp_path / "image.dcm"
    manifest.write_text("path,label,patient,split\nimage.dcm,a,p,test\n")
    image.write_bytes(b"pixels")
    studies = [LabelledStudy("s", (image,), "a", "p", "test")]
    seen = [data_digest("plan", manifest, studies), data_digest("other plan", manifest, studies)]
    assert data_digest("plan", manifest, studies) == seen[0]
    image.write_bytes(b"PIXELS")
    seen.append(data_digest("plan", manifest, studies))
    manifest.write_text("path,label,patient,split\nimage.dcm,b,p,test\n")
    seen.append(data_digest("plan", manifest, studies))
    assert len(set(seen)) == 4


def test_a_shared_patient_is_refused_without_naming_the_patient() -> None:
    require_disjoint({"tune": {"p1"}, "gate": {"p2"}, "baseline": set()})
    with pytest.raises(SharedPatient, match=r"gate and baseline share 1 patient") as caught:
        require_disjoint({"tune": {"p1"}, "gate": {"p2"}, "baseline": {"p2"}})
    assert "p2" not in str(caught.value)


@pytest.mark.parametrize(
    ("gate", "earlier", "expected"),
    [
        ({"p1"}, [], 0),
        ({"p1"}, [{"p2"}, {"p3"}], 0),
        ({"p1", "p2"}, [{"p2"}, {"p3"}], 1),
        ({"p4"}, [{"p1", "p2"}, {"p3", "p4"}, {"p2", "p3"}, {"p9"}], 3),
    ],
)
def test_earlier_judgements_count_as_far_as_shared_patients_lead(gate: set[str], earlier: list[set[str]], expected: int) -> None:
    assert looks(gate, earlier) == expected


@given(st.lists(st.frozensets(st.integers(0, 12), min_size=1, max_size=3), max_size=12))
def test_the_spent_levels_never_exceed_one_alpha_for_each_gate_of_fresh_patients(gates: list[frozenset[int]]) -> None:
    seen = [looks(map(str, gate), [set(map(str, each)) for each in gates[:place]]) for place, gate in enumerate(gates)]
    assert sum(Rules(looks=each).level for each in seen) <= Rules().alpha * seen.count(0)


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ({"since": "2026-03-01"}, START),
        ({"since": "2026-03-01T00:00:00+00:00"}, START),
        ({"since": None}, None),
        ({"since": "spring"}, None),
        ({"since": 3.0}, None),
        ({}, None),
    ],
)
def test_the_start_of_the_decline(evidence: dict, expected: datetime | None) -> None:
    assert start_of_decline(evidence) == expected


def test_an_order_may_set_numbers_within_reason(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    made = options_of(settings, {"epochs": 3, "head_learning_rate": 0.01, PLAN: {}})
    assert (made.epochs, made.head_learning_rate, made.batch_size) == (3, 0.01, settings.remediation.batch_size)
    ready = repair_settings(made, "cpu", 50)
    assert (ready.training.epochs, ready.reservoir, ready.search) == (3, 50, True)
    assert not repair_settings(options_of(settings, {"search": False}), "cpu", 50).search
    assert (ready.training.devices, repair_settings(made, "cpu", 50, 2).training.devices) == (1, 2)
    with pytest.raises(InvalidInput, match="epoch_count"):
        options_of(settings, {"epoch_count": 3})
    with pytest.raises(InvalidInput, match="epochs"):
        options_of(settings, {"epochs": 0})


def test_a_plan_limits_the_rate_at_which_the_body_will_really_learn(tmp_path: Path) -> None:
    """An order need not name it; half of the first rate may lie outside the plan."""
    chosen = options_of(Settings(state_dir=tmp_path), {})
    read = read_plan(Path(__file__).parents[2] / "docs" / "examples" / "change-plan.yaml")
    require_planned(read, Remedy.PARTIAL, in_effect(chosen, {BODY_RATE: 1e-3}))
    with pytest.raises(InvalidInput, match=r"body_learning_rate 0\.005 is outside 1e-06 to 0\.001 .* clause M3"):
        require_planned(read, Remedy.PARTIAL, in_effect(chosen, {BODY_RATE: 1e-2}))


def test_penalties_precision_and_parts_of_a_batch_are_the_sites_or_the_orders(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, remediation={"ewc": 0.2, "precision": "auto", "search_trainings": 3})
    ready = repair_settings(options_of(settings, {"l2sp": 0.5, "accumulation": 4}), "cpu", 50)
    training = ready.training
    assert (training.ewc, training.l2sp, training.distillation) == (0.2, 0.5, 0.0)
    assert (training.precision, training.accumulation, ready.attempts) == ("auto", 4, 3)
    usual = repair_settings(options_of(Settings(state_dir=tmp_path), {}), "cpu", 50)
    assert (usual.training.precision, usual.training.accumulation, usual.attempts) == ("float32", 1, 2)
    with pytest.raises(InvalidInput, match="ewc"):
        options_of(settings, {"ewc": -1})


def test_a_search_may_try_every_penalty_and_two_weights_of_each(tmp_path: Path) -> None:
    most = repair_settings(options_of(Settings(state_dir=tmp_path), {"search_trainings": 6}), "cpu", 50)
    tried = dict(most.candidates())
    assert {changes.get("ewc", 0) for changes in tried.values()} == {0, 0.1, 1.0}
    assert {changes.get("l2sp", 0) for changes in tried.values()} == {0, 0.1, 1.0}
    assert [name for name, _ in repair_settings(options_of(Settings(state_dir=tmp_path), {"ewc": 1}), "cpu", 50).candidates()] == [
        "as ordered"
    ]


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"settings": {"body_learning_rate": 2e-3}}, 2e-3),
        ({"settings": {"body_learning_rate": 2e-3}, BODY_RATE: 2e-4}, 2e-4),
        ({BODY_RATE: 2e-4}, 2e-4),
        ({"settings": {}}, None),
        ({"settings": {"body_learning_rate": "fast"}}, None),
        ({"trained_on": "site A"}, None),
    ],
)
def test_the_rate_at_which_a_line_learned_first(training: dict, expected: float | None) -> None:
    assert first_body_rate(training) == expected


def test_a_body_learns_at_half_its_first_rate_unless_the_order_says_another(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    usual, ordered = options_of(settings, {}), options_of(settings, {"body_learning_rate": 3e-5})
    rates = [repair_settings(usual, "cpu", 50, first_rate=first).training.body_learning_rate for first in (2e-3, 2e-4, None)]
    assert rates == [1e-3, 1e-4, 1e-4]
    assert repair_settings(ordered, "cpu", 50, first_rate=2e-3).training.body_learning_rate == 3e-5
    assert repair_settings(usual, "cpu", 50).training.patience == usual.epochs


@pytest.mark.parametrize("remedy", [remedy for remedy in Remedy if remedy not in EXECUTABLE] + [None])
def test_what_cannot_be_carried_out_is_refused_with_what_can(remedy: Remedy | None) -> None:
    with pytest.raises(InvalidInput, match="possible are rethreshold, recalibrate, harmonise, adapt_statistics, head_only"):
        require_executable(remedy)


def test_all_rungs_but_the_feed_can_be_carried_out_and_stand_in_the_ladders_order() -> None:
    assert set(Remedy) - set(EXECUTABLE) == {Remedy.NONE, Remedy.FIX_FEED}
    assert [remedy for remedy in Remedy if remedy in EXECUTABLE] == list(EXECUTABLE)
    assert [require_executable(remedy) for remedy in EXECUTABLE] == list(EXECUTABLE)


@given(st.sampled_from(JobState), st.sampled_from(JobEvent))
def test_jobs_follow_the_table_and_an_end_is_an_end(state: JobState, event: JobEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert state not in {JobState.SUCCEEDED, JobState.FAILED}
        assert after(state, event) in set(JobState)
    else:
        with pytest.raises(ImpossibleTransition):
            after(state, event)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 40), st.integers(0, 3))
def test_the_reservoir_is_bounded_and_even(labels: list[str], most: int, seed: int) -> None:
    studies = [LabelledStudy(f"s{index}", (), label, f"p{index}") for index, label in enumerate(labels)]
    kept = data.bounded(studies, most, seed)
    assert len(kept) == min(most, len(studies))
    assert kept == data.bounded(studies, most, seed)
    assert [each.key for each in kept] == [each.key for each in studies if each in kept]
    numbers = {label: sum(each.label == label for each in kept) for label in set(labels)}
    for label, number in numbers.items():
        assert number >= min(labels.count(label), most // len(numbers))
