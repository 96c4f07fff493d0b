"""What a verdict needs besides good numbers: unknown patients, the registered weights, the plan in force, all or nothing."""

import itertools
import os
import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.event import listen
from sqlmodel import Session, select

from models.bundle import network_of, save_bundle
from models.errors import BrokenBundle
from models.scoring import ScoredCase
from models.spec import ModelSpec, SelectionRule
from schemas.tables import Audit, BaselineCase, Case, Job, ModelVersion, Order, Outbox, TrainingPatient
from schemas.topics import ORDER, PROMOTION
from schemas.vocabulary import CaseRole, CaseState, OrderKind, OrderState, Verdict, VersionState
from services.remediation import admission, data, repository
from services.remediation.gate import Judgement
from services.remediation.plan import LabelledCase, Plan
from services.runtime import registry
from services.runtime.change_plans import plan_of
from services.runtime.database import Database
from services.runtime.errors import InvalidInput
from services.runtime.registration import require_leave_to_begin
from services.runtime.service import Context

AT = datetime(2026, 3, 2, tzinfo=UTC)
CLASSES = ["a", "b"]
PLAN = Path(__file__).parents[2] / "docs" / "examples" / "change-plan.yaml"


@pytest.fixture
def chest(context: Context) -> Context:
    """Champion 1 with two baseline cases, candidate 2, and its judgement entered."""
    with context.database.transaction() as tx:
        registry.register_model(tx, "chest", "pneumonia", CLASSES, {})
        for number in (1, 2):
            row = ModelVersion(
                model="chest", version=number, bundle="b", sha256="0", classes=CLASSES, created_at=tx.clock.now(), state="candidate"
            )
            keys = {"model": "chest", "version": number, "predicted": "a", "probabilities": {"a": 1.0, "b": 0.0}}
            cases = [BaselineCase(case_key=f"{each}", patient_key=f"base-{each}", truth=each, **keys) for each in CLASSES]
            registry.add_version(tx, row, cases, actor="test")
        repository.enter_judgement(tx, "run", "chest", {"champion": 1, "gate": []})
    return context


def asked(context: Context) -> admission._Asked:
    return admission._Asked(
        "chest", 2, "user:owner", "trained on both scanners", plan_of(context.settings, "chest", context.clock.now().date())
    )


def conclude(context: Context, verdict: Verdict, wanted: admission._Asked | None = None) -> int:
    gate = (LabelledCase("study", "gate-patient", "a", AT),)
    pair = admission._Pair(Plan(1, (), gate, None), (None, None), SelectionRule(), (), ())  # type: ignore[arg-type]
    scored = [ScoredCase("study", "gate-patient", "a", "a", {"a": 0.9, "b": 0.1})]
    judged = admission._Judged(Judgement(verdict, ("Better.",), {"mcnemar_p": 0.01}, 60), scored)
    return admission._conclude(context, wanted or asked(context), pair, judged, "run")


def everything(context: Context) -> Mapping[str, Any]:
    with context.database.read() as session:
        return {
            "champion": registry.model(session, "chest").champion,
            "states": [row.state for row in registry.versions(session, "chest")],
            "baseline": [row.case_key for row in registry.baseline(session, "chest", 2)],
            "audit": len(session.exec(select(Audit)).all()),
            "events": len(session.exec(select(Outbox)).all()),
            "result": session.get_one(Job, "run").result,
        }


def test_a_promotion_is_whole(chest: Context) -> None:
    conclude(chest, Verdict.PROMOTE)
    after = everything(chest)
    assert (after["champion"], after["states"]) == (2, [VersionState.ARCHIVED, VersionState.CHAMPION])
    assert after["baseline"] == ["study"]
    assert after["result"]["verdict"] == Verdict.PROMOTE
    assert after["events"] == 1


@pytest.mark.parametrize("verdict", [Verdict.PROMOTE, Verdict.REJECT, Verdict.NEED_LABELS])
def test_or_it_has_not_happened(chest: Context, monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    """The last step fails: no version, baseline, verdict, audit record or event is left of the others."""
    before = everything(chest)

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(admission, "_event", fail)
    with pytest.raises(RuntimeError):
        conclude(chest, verdict)
    assert everything(chest) == before


def killed_at(context: Context, statement: int) -> bool:
    """Promote in a child that SIGKILL ends at its statement of that number, the commit being the last; whether it came so far."""
    child = os.fork()
    if child == 0:
        try:
            own = Database(context.database.engine.url.render_as_string(hide_password=False), context.clock)
            done = itertools.count(1)

            def count(*_: object) -> None:
                if next(done) == statement:
                    os.kill(os.getpid(), signal.SIGKILL)

            listen(own.engine, "before_cursor_execute", count)
            listen(own.engine, "commit", count)
            conclude(Context(context.settings, own, context.clock, context.pseudonyms), Verdict.PROMOTE)
            os._exit(0)
        finally:
            os._exit(1)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in {0, -signal.SIGKILL}
    return ended != 0


def test_a_promotion_that_sigkill_ends_at_any_statement_has_not_happened(chest: Context) -> None:
    before = everything(chest)
    for statement in range(1, 100):
        if not killed_at(chest, statement):
            break
        assert everything(chest) == before, f"killed at statement {statement}"
    assert statement > 10, "every write has been interrupted"
    after = everything(chest)
    assert (after["champion"], after["events"]) == (2, before["events"] + 1)


def test_for_want_of_labels_they_are_ordered_with_their_number(chest: Context) -> None:
    """One gate case is there and 60 are needed; every fourth labelled study is one of the gate."""
    assert conclude(chest, Verdict.NEED_LABELS) == 59 * 4
    with chest.database.read() as session:
        (row,) = session.exec(select(Order))
        sent = {each.topic: each for each in session.exec(select(Outbox))}
        states = [each.state for each in registry.versions(session, "chest")]
    assert (row.kind, row.state, row.settings, row.version) == (OrderKind.LABEL_REQUEST, OrderState.ACCEPTED, {"cases": 236}, 1)
    assert row.reason == "Version 2 of chest waits for its judgement: Better."
    assert sent[ORDER.name].event_id == row.order_id
    assert PROMOTION.name in sent
    assert VersionState.CANDIDATE in states, "it can be judged again"


@pytest.mark.parametrize("change", ["put in force", "amended", "taken away", "ended"])
def test_a_verdict_is_void_when_another_change_control_plan_came_into_force_meanwhile(chest: Context, change: str) -> None:
    file = chest.settings.state_dir / "plans" / "chest.yaml"
    file.parent.mkdir()
    text = PLAN.read_text().replace("model: brain-mri", "model: chest")
    text = text.replace(
        "remedies: [harmonise, adapt_statistics]", "remedies: [harmonise, adapt_statistics]\n    owner_versions: true"
    )
    if change == "ended":
        text += "\nvalid_until: 2026-03-02\n"
    if change != "put in force":
        file.write_text(text)
    wanted, before = asked(chest), everything(chest)
    if change == "taken away":
        file.unlink()
    elif change == "ended":
        chest.clock.advance(86_400)
    else:
        file.write_text(text.replace('version: "1.0"', 'version: "1.1"'))
    with pytest.raises(InvalidInput, match=r"changed meanwhile.*void|was valid until 2026-03-02"):
        conclude(chest, Verdict.PROMOTE, wanted)
    assert everything(chest) == before


def test_whoever_taught_any_version_judges_none(chest: Context) -> None:
    with chest.database.transaction() as tx:
        tx.session.add(TrainingPatient(model="chest", patient_key="taught"))
        tx.session.add(TrainingPatient(model="other", patient_key="of another model"))
    with chest.database.read() as session:
        assert data.used_patients(session, "chest", [], chest.pseudonyms) == {"taught", "base-a", "base-b"}


def enter_case(session: Session, number: int, role: CaseRole, patient: str) -> None:
    names = {
        "study_key": f"{role}{number}",
        "model": "chest",
        "version": 1,
        "task": "pneumonia",
        "patient_key": patient,
        "role": role,
    }
    times = {"acquired_at": AT, "scored_at": AT, "joined_at": AT}
    answer = {"predicted": "a", "probabilities": {"a": 0.9, "b": 0.1}, "truth": CLASSES[number % 2]}
    session.add(Case(**names, **times, **answer, state=CaseState.JOINED))


def gate_plan(context: Context) -> Plan:
    with context.database.read() as session:
        champion = registry.version(session, "chest", 1)
        return admission._plan(context, session, champion, [], (CLASSES, CLASSES), context.settings.remediation)


def test_a_patient_who_raised_the_alarm_does_not_judge_a_version_that_a_person_brings(chest: Context) -> None:
    with chest.database.transaction() as tx:
        for number in range(40):
            enter_case(tx.session, number, CaseRole.GATE, f"p{number}")
    assert len(gate_plan(chest).gate) == 40
    with chest.database.transaction() as tx:
        enter_case(tx.session, 0, CaseRole.TRIGGER, "p7")
    with pytest.raises(InvalidInput, match="trigger and gate share 1 patient"):
        gate_plan(chest)


def test_weights_that_are_not_the_registered_ones_are_not_judged(tmp_path: Path) -> None:
    spec = ModelSpec(name="m", task="t", classes=("a", "b"), options={"width": 4})
    kept = save_bundle(tmp_path / "kept", spec, network_of(spec))
    save_bundle(tmp_path / "put", spec, network_of(spec.model_copy(update={"seed": 1})))
    row = ModelVersion(model="m", version=1, bundle="kept", sha256=kept.sha256, created_at=AT)
    assert data.version(tmp_path, row).info.sha256 == kept.sha256
    row.bundle = "put"
    with pytest.raises(BrokenBundle, match="not those that were registered"):
        data.version(tmp_path, row)


def test_retiring_is_no_way_around_the_change_control_plan(chest: Context) -> None:
    require_leave_to_begin(chest, "chest")
    with chest.database.transaction() as tx:
        registry.retire(tx, "chest", actor="user:owner")
    require_leave_to_begin(chest, "chest")
    file = chest.settings.state_dir / "plans" / "chest.yaml"
    file.parent.mkdir()
    file.write_text(PLAN.read_text().replace("model: brain-mri", "model: chest"))
    with pytest.raises(InvalidInput, match="is no modification of the change control plan"):
        require_leave_to_begin(chest, "chest")
    file.write_text(
        file.read_text().replace(
            "remedies: [harmonise, adapt_statistics]", "remedies: [harmonise, adapt_statistics]\n    owner_versions: true"
        )
    )
    require_leave_to_begin(chest, "chest")
    require_leave_to_begin(chest, "new")
