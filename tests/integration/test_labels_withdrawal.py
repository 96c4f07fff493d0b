"""Withdrawals from outside: by file, over HTTP's intake, by hand, and what the evaluation then compares with."""

import json
import os

import pytest
from sqlmodel import select

from listeners.labels.csv_import import import_csv
from listeners.labels.intake import RawLabel, take_in
from listeners.labels.withdrawal import withdraw
from schemas import topics
from schemas.settings import JoinSettings
from schemas.tables import Audit, BaselineCase, Batch, Case, GroundTruth, Job, ModelVersion, Outbox, Study
from schemas.vocabulary import JobState, VersionState
from services.evaluation import repository
from services.ground_truth.handlers import Join
from services.runtime import registry
from services.runtime.consumer import process
from services.runtime.errors import InvalidInput
from services.runtime.messages import Record

UID = "1.2.826.0.1.3680043.8.498.1"


def write(tmp_path, text, name="labels.csv", at=1_700_000_000):
    path = tmp_path / name
    path.write_text(text)
    os.utime(path, (at, at))
    return path


def events(context):
    with context.database.read() as session:
        return [row for row in session.exec(select(Outbox).order_by(Outbox.id)) if row.topic == topics.LABEL.name]


def join(context):
    """Deliver everything that lies in the outbox."""
    records = [Record(row.topic, 0, row.id or 0, row.key, row.headers, row.body) for row in events(context)]
    assert process(context.database, Join(JoinSettings()), records) == 0


def labels(context):
    with context.database.read() as session:
        return {(row.source, row.value) for row in session.exec(select(GroundTruth))}


def entered(context, *rows):
    with context.database.transaction() as tx:
        for row in rows:
            tx.session.add(row)


def case_of(key, version=1, **fields):
    values = {"study_key": key, "model": "m", "version": version, "task": "tumour", "patient_key": "b" * 32, "role": "trigger"}
    values |= {"predicted": "glioma", "probabilities": {"glioma": 1.0, "none": 0.0}, "state": "joined", "truth": "glioma"}
    return Case(**values | fields)


@pytest.mark.parametrize("status", ["D", "W", "x", "withdrawn", "entered-in-error", "cancelled", "true"])
def test_a_row_with_such_a_status_withdraws_what_its_source_said(context, tmp_path, status):
    import_csv(context, write(tmp_path, f"study,task,label,source\n{UID},tumour,glioma,pathology\n{UID},tumour,none,csv\n"))
    join(context)
    later = write(tmp_path, f"study,task,source,status\n{UID},tumour,pathology,{status}\n", at=1_700_000_100)
    summary = import_csv(context, later)
    assert (summary.accepted, summary.faulty) == (1, 0)
    assert all("take back nothing" not in text for text in summary.warnings)
    again = import_csv(context, later)
    assert (again.accepted, again.known) == (0, 1)
    join(context)
    assert labels(context) == {("pathology", None), ("csv", "none")}


def test_results_that_are_not_final_are_no_truth(sqlite_context, tmp_path):
    rows = [f"{UID}.{n},tumour,glioma,{status}\n" for n, status in enumerate(["F", "C", "U", "final", "P", "R", "preliminary", ""])]
    summary = import_csv(sqlite_context, write(tmp_path, "study,task,label,OBX-11\n" + "".join(rows)))
    assert (summary.accepted, summary.faulty) == (5, 3)
    assert {fault.row for fault in summary.faults} == {6, 7, 8}
    assert all("only a final result" in fault.reason for fault in summary.faults)
    missing = import_csv(sqlite_context, write(tmp_path, f"study,task,status\n{UID},tumour,F\n"))
    assert [fault.reason for fault in missing.faults] == ["label missing"]


def test_withdrawing_what_another_source_said_is_remarked_on(sqlite_context, tmp_path):
    import_csv(sqlite_context, write(tmp_path, f"study,task,label,source\n{UID},tumour,glioma,pathology\n"))
    join(sqlite_context)
    summary = import_csv(sqlite_context, write(tmp_path, f"study,task,status\n{UID},tumour,D\n", at=1_700_000_100))
    assert any("1 withdrawals of source 'csv' take back nothing" in text for text in summary.warnings)
    join(sqlite_context)
    assert labels(sqlite_context) == {("pathology", "glioma"), ("csv", None)}


def test_an_edited_file_withdraws_at_the_time_of_its_label(sqlite_context, tmp_path):
    row = f"{UID},tumour,glioma,2026-02-01T08:00:00Z"
    import_csv(sqlite_context, write(tmp_path, f"study,task,label,labelled_at,status\n{row},F\n"))
    import_csv(sqlite_context, write(tmp_path, f"study,task,label,labelled_at,status\n{row},W\n"))
    join(sqlite_context)
    assert labels(sqlite_context) == {("csv", None)}


def test_by_hand_all_sources_are_withdrawn_and_their_uses_told(context, tmp_path):
    key = context.pseudonyms.study(UID)
    import_csv(context, write(tmp_path, f"study,task,label,source\n{UID},tumour,glioma,pathology\n{UID},tumour,none,csv\n"))
    join(context)
    now = context.clock.now()
    plan = {"tune": [{"study_key": "c" * 32}], "gate": [{"study_key": key}]}
    with context.database.transaction() as tx:
        registry.register_model(tx, "m", "tumour", ["glioma", "none"], {})
    entered(
        context,
        Study(
            study_uid=UID,
            study_key=key,
            patient_key="b" * 32,
            accession_key=context.pseudonyms.accession("A-1"),
            acquired_at=now,
            first_instance_at=now,
            last_instance_at=now,
        ),
        Batch(batch_id="b1", model="m", version=1, number=4, cases=1, closed_by="size", closed_at=now),
        case_of(key, state="batched", batch_id="b1", acquired_at=now, scored_at=now),
        Job(
            job_id="j1",
            order_id="o1",
            model="m",
            remedy="full",
            state=JobState.SUCCEEDED,
            settings={"plan": plan},
            created_at=now,
            updated_at=now,
        ),
        ModelVersion(model="m", version=2, state=VersionState.CHALLENGER, bundle="b", sha256="0" * 64, origin="j1", created_at=now),
        BaselineCase(model="m", version=2, case_key=key, patient_key="b" * 32, truth="glioma", predicted="none", probabilities={}),
    )
    context.clock.advance(60)
    found = withdraw(context, "A-1", None, None, "user:test")
    assert [(each.source, each.value) for each in found.labels] == [("csv", "none"), ("pathology", "glioma")]
    said = " ".join(found.uses)
    assert "batch 4 of m version 1" in said
    assert "judged version 2 (challenger) of m, order o1: that is not undone" in said
    assert "baseline of m version 2" in said
    assert "taught" not in said
    join(context)
    assert labels(context) == {("pathology", None), ("csv", None)}
    with context.database.read() as session:
        (case,) = session.exec(select(Case)).all()
        (audit,) = session.exec(select(Audit).where(Audit.action == "label.withdrawn")).all()
    assert (case.truth, case.state, audit.actor, audit.subject) == (None, "withdrawn", "user:test", key)
    with pytest.raises(InvalidInput, match="no label of this study"):
        withdraw(context, UID, None, None, "user:test")
    take_in(context, [RawLabel(1, {"study": UID, "task": "tumour", "label": "none"})], "http", context.clock.now())
    assert UID not in json.dumps([row.body.decode() for row in events(context)])


def test_nothing_to_withdraw_is_said(sqlite_context):
    for study in (UID, "a" * 32, "A-404"):
        with pytest.raises(InvalidInput):
            withdraw(sqlite_context, study, None, None, "user:test")
    assert events(sqlite_context) == []


def test_a_baseline_of_gate_cases_follows_their_truths(context):
    now = context.clock.now()
    keys = [f"{n:032x}" for n in range(3)]
    with context.database.transaction() as tx:
        registry.register_model(tx, "m", "tumour", ["glioma", "none"], {})
        rows = [
            BaselineCase(model="m", version=2, case_key=key, patient_key=key, truth="glioma", predicted="glioma", probabilities={})
            for key in [*keys, "development-1"]
        ]
        row = ModelVersion(model="m", version=2, bundle="b", sha256="0" * 64, created_at=now)
        registry.add_version(tx, row, rows, actor="user:test")
    truths = dict(zip(keys, ["glioma", "none", None], strict=True))
    entered(
        context,
        *[
            case_of(key, truth=truth, state="joined" if truth else "waiting", acquired_at=now, scored_at=now)
            for key, truth in truths.items()
        ],
    )
    with context.database.read() as session:
        found = {row.case_key: row.truth for row in repository.baseline(session, "m", 2)}
        kept = {row.case_key: row.truth for row in registry.baseline(session, "m", 2)}
    assert found == {keys[0]: "glioma", keys[1]: "none", "development-1": "glioma"}
    assert set(kept.values()) == {"glioma"}
    assert len(kept) == 4
