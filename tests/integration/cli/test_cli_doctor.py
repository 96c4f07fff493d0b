"""The doctor finds what a site gets wrong, each fault with what to do."""

import os
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from listeners.cli import site_checks
from listeners.cli.findings import Finding
from schemas.events import AgentReply
from schemas.settings import Settings
from schemas.tables import Audit, BaselineCase, Case, DeadLetter, ModelVersion, Outbox, Study
from schemas.topics import AGENT_REPLY
from schemas.unscored import UnscoredStudy
from schemas.vocabulary import StudyState
from services.runtime import outbox, registry
from services.runtime.run_state import RunState, lock, write_state
from services.runtime.service import Context

Reclaim = Callable[..., Any]


def one(findings: Any, subject: str) -> Finding:
    return next(each for each in findings if each.subject == subject)


def serve_a_model(site: Context, *, right: int, wrong: int, age: timedelta = timedelta()) -> None:
    with site.database.transaction() as tx:
        made = tx.clock.now() - age
        registry.register_model(tx, "lung", "pneumonia", ["a", "b"], {})
        row = ModelVersion(model="lung", version=1, bundle="lung/1", sha256="0", created_at=made)
        cases = [
            BaselineCase(
                model="lung",
                version=1,
                case_key=f"{truth}{number}",
                patient_key=f"{truth}{number}",
                truth=truth,
                predicted=truth if number < right else "ab".replace(truth, ""),
                probabilities={"a": 0.5, "b": 0.5},
            )
            for truth in "ab"
            for number in range(right + wrong)
        ]
        registry.add_version(tx, row, cases, actor="test")


def receive(site: Context, age: timedelta) -> None:
    with site.database.transaction() as tx:
        at = tx.clock.now() - age
        times = {"acquired_at": at, "first_instance_at": at, "last_instance_at": at}
        tx.session.add(Study(study_uid="1.2", study_key="k", patient_key="p", state=StudyState.COMPLETE, instances=1, **times))


def test_a_state_folder_that_others_may_read_is_found_and_closed(reclaim: Reclaim, state: Path) -> None:
    assert "is its user's only" in reclaim("doctor").text
    archive = state / "archive" / "ab"
    archive.mkdir(parents=True)
    (archive / "image.dcm").write_bytes(b"x")
    for path, mode in ((state, 0o755), (state / "archive", 0o755), (archive, 0o755), (archive / "image.dcm", 0o644)):
        path.chmod(mode)
    found = reclaim("doctor")
    assert found.code == 1
    assert "other users may read archive" in found.text
    assert "--repair" in found.text
    repaired = reclaim("doctor", "--repair")
    assert "is its user's only" in repaired.text
    assert [path for path in state.rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_a_closed_state_folder_closes_what_is_in_it(state: Path) -> None:
    (state / "models").mkdir(mode=0o755)
    assert site_checks.loose_entries(state) == []


@pytest.mark.parametrize(("right", "bad"), [(20, True), (36, False)])
def test_a_model_at_chance_level_is_a_fault(site: Context, right: int, bad: bool) -> None:
    serve_a_model(site, right=right, wrong=40 - right)
    found = [each for each in site_checks.models(site.settings) if "guessing" in each.found]
    assert [each.bad for each in found] == ([True] if bad else [])


def test_a_model_that_nothing_serves_or_that_is_stopped_is_told(site: Context) -> None:
    serve_a_model(site, right=30, wrong=2)
    with site.database.transaction() as tx:
        registry.set_serving(tx, "lung", serving=False, actor="test")
    assert "models resume lung" in one(site_checks.models(site.settings), "model").advice
    with site.database.transaction() as tx:
        registry.retire(tx, "lung", actor="test")
    assert one(site_checks.models(site.settings), "model") == Finding("model", "lung is retired")


def test_an_empty_feed_is_a_fault_where_a_model_serves(site: Context) -> None:
    assert not one(site_checks.feed(site.settings), "studies").bad, "before a model serves nothing is missed"
    serve_a_model(site, right=30, wrong=2, age=timedelta(days=5))
    assert one(site_checks.feed(site.settings), "studies").bad
    receive(site, timedelta(days=3))
    silent = one(site_checks.feed(site.settings), "studies")
    assert (silent.bad, "3 days ago" in silent.found) == (True, True)
    patient = site.settings.model_copy(update={"dicom": site.settings.dicom.model_copy(update={"silent_after_s": 5 * 86_400})})
    fine = list(site_checks.feed(patient))
    assert not one(fine, "studies").bad
    assert "labels import" in one(fine, "labels").advice


@pytest.mark.usefixtures("running")
def test_events_that_do_not_go_out_are_a_fault(site: Context) -> None:
    assert one(site_checks.service(site.settings), "outbox").found == "no event waits for the bus"
    with site.database.transaction() as tx:
        old = tx.clock.now() - timedelta(minutes=10)
        tx.session.add(Outbox(event_id="e", topic="t", key="k", headers={}, body=b"", created_at=old))
    found = one(site_checks.service(site.settings), "outbox")
    assert (found.bad, found.found) == (True, "1 event waits for the bus, the oldest for 10 minutes")


@pytest.mark.usefixtures("running")
def test_a_consumer_that_reads_nothing_is_a_fault(site: Context) -> None:
    """Its process is left down, or hangs: everything is on the bus, and nothing comes of it."""
    said = AgentReply(command_id="c", thread="console:t", text="done")
    with site.database.transaction() as tx:
        tx.emit(AGENT_REPLY, said, event_id="e1")
        outbox.mark_sent(tx, [row.id for row in outbox.unsent(tx.session, 9)], "broker")
    readers = AGENT_REPLY.readers
    assert readers
    assert [each for each in site_checks.service(site.settings) if each.subject == "consumers"] == []
    with site.database.transaction() as tx:
        tx.session.execute(update(Outbox).values(created_at=tx.clock.now() - timedelta(hours=2)))
    found = one(site_checks.service(site.settings), "consumers")
    assert found.bad
    assert found.found == f"{readers[0]} has not read 1 event, the oldest for 2 hours"
    with site.database.transaction() as tx:
        for reader in readers:
            tx.claim(reader, ["e1"])
    assert [each for each in site_checks.service(site.settings) if each.subject == "consumers"] == []


def test_waiting_dead_letters_and_a_stopped_service_are_told(site: Context) -> None:
    with site.database.transaction() as tx:
        rest = {"partition": 0, "offset": 0, "body": b"", "error": "E", "reason": "r", "created_at": tx.clock.now()}
        tx.session.add(DeadLetter(consumer="c", event_id="e", topic="t", **rest))
    found = list(site_checks.service(site.settings))
    assert "discard" in one(found, "dead letters").advice
    assert "reclaim up" in one(found, "service").advice


def test_a_clock_that_has_gone_back_is_a_fault(site: Context) -> None:
    assert not one(site_checks.service(site.settings), "clock").bad
    with site.database.transaction() as tx:
        tx.session.add(Audit(at=tx.clock.now() + timedelta(hours=3), actor="a", action="b", subject="c", detail={}, trace_id=""))
    found = one(site_checks.service(site.settings), "clock")
    assert (found.bad, "3 hours ahead" in found.found) == (True, True)


@pytest.mark.postgres
def test_the_same_on_postgresql(postgres_database_url: str, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, database={"url": postgres_database_url})
    for check in (site_checks.service, site_checks.feed, site_checks.models):
        assert not any(each.bad for each in check(settings))


def test_before_anything_exists_the_doctor_says_what_to_do(reclaim: Reclaim, state: Path) -> None:
    (state / "reclaim.sqlite").unlink()
    said = reclaim("doctor")
    assert "has no tables yet" in said.text
    assert "cannot be examined" not in said.text
    assert said.code == 0


def test_studies_without_a_score_are_told_by_kind(site: Context) -> None:
    assert list(site_checks.unscored(site.settings)) == []
    kinds = [("", "CT", "KNEE", 2), ("", "MR", "", 1), ("lung", "CT", "CHEST", 1)]
    with site.database.transaction() as tx:
        for model, modality, body_part, count in kinds:
            for number in range(count):
                of = {"model": model, "modality": modality, "body_part": body_part, "noticed_at": tx.clock.now()}
                tx.session.add(UnscoredStudy(study_key=f"{model}{modality}{number}", revision=1, **of))
        old = tx.clock.now() - timedelta(days=2)
        tx.session.add(UnscoredStudy(study_key="old", revision=1, model="", modality="US", noticed_at=old))
    found = {each.found: each.advice for each in site_checks.unscored(site.settings)}
    assert list(found) == [
        "2 studies in the last day matched no model: modality CT, body part KNEE",
        "1 study in the last day matched no model: modality MR, body part not given",
        "1 study waiting for lung: modality CT, body part CHEST",
    ]
    assert found["1 study waiting for lung: modality CT, body part CHEST"] == "`reclaim models resume lung`"


@pytest.mark.parametrize(("age", "share", "told"), [(0, 0.6, True), (0, 0.1, False), (2, 0.6, False)])
def test_a_doubt_that_the_test_set_does_not_know_is_told_before_any_label(
    site: Context, age: int, share: float, told: bool
) -> None:
    serve_a_model(site, right=40, wrong=0)
    with site.database.transaction() as tx:
        for row in registry.baseline(tx.session, "lung", 1):
            row.findings = []
        at = tx.clock.now() - timedelta(days=age)
        for number in range(50):
            said: dict[str, Any] = {"predicted": "a", "probabilities": {}, "acquired_at": at, "scored_at": at}
            doubts = ["rescale_absurd"] if number < 50 * share else []
            of = {"model": "lung", "version": 1, "task": "pneumonia", "patient_key": f"p{number}", "role": "trigger"}
            tx.session.add(Case(study_key=f"s{number}", findings=doubts, **of, **said))
    found = [each.found for each in site_checks.images(site.settings)]
    assert found == (["lung, last day: rescale absurd in 60% of the studies, was 0%"] if told else [])


def test_what_a_killed_service_left_is_not_taken_for_a_broker(site: Context, reclaim: Reclaim) -> None:
    """Nobody set an address, so advice to correct it would lead astray."""
    left = {"pid": 1, "bootstrap": "127.0.0.1:1", "embedded": True, "incarnation": "one", "broker_pid": 2}
    write_state(site.settings.state_dir, RunState(**left, started_at=site.clock.now(), ports={}, children={}))
    assert "broker: embedded, started by `reclaim up`" in reclaim("doctor").text
    with lock(site.settings.state_dir):
        write_state(
            site.settings.state_dir, RunState(**left | {"pid": os.getpid()}, started_at=site.clock.now(), ports={}, children={})
        )
        assert "broker: 127.0.0.1:1 does not answer" in reclaim("doctor").text
