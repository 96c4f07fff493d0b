"""CSV import against a real database: good rows go in, bad ones are named, the same file twice changes nothing."""

import json
import os

import pytest
from sqlmodel import select

from listeners.labels.csv_import import import_csv
from schemas import topics
from schemas.tables import Outbox, RegisteredModel, Study
from services.runtime.errors import InvalidInput

UID = "1.2.826.0.1.3680043.8.498.1"


def write(tmp_path, text, name="labels.csv", at=None):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.utime(path, (at or 1_700_000_000, at or 1_700_000_000))
    return path


def labels(context):
    with context.database.read() as session:
        rows = session.exec(select(Outbox).order_by(Outbox.id)).all()
    assert {row.topic for row in rows} <= {topics.LABEL.name}
    return [json.loads(row.body) for row in rows]


def add_study(context, uid=UID, accession="A-1"):
    with context.database.transaction() as tx:
        now = context.clock.now()
        keys = {"study_key": context.pseudonyms.study(uid), "accession_key": context.pseudonyms.accession(accession)}
        tx.session.add(
            Study(study_uid=uid, patient_key="0" * 32, acquired_at=now, first_instance_at=now, last_instance_at=now, **keys)
        )


def test_rows_become_events_and_the_same_file_twice_changes_nothing(context, tmp_path):
    rows = "".join(f"{UID}.{n},tumour,glioma,2026-02-0{n % 9 + 1}T08:00:00+01:00,pathology\n" for n in range(1, 1202))
    path = write(tmp_path, "study,task,label,labelled_at,source\n" + rows)
    seen = []
    first = import_csv(context, path, on_progress=seen.append)
    assert (first.rows, first.accepted, first.known, first.faults) == (1201, 1201, 0, [])
    assert seen == [500, 1000, 1201]
    again = import_csv(context, path)
    assert (again.rows, again.accepted, again.known) == (1201, 0, 1201)
    found = labels(context)
    assert len(found) == 1201
    assert found[0]["source"] == "pathology"
    assert UID not in json.dumps(found)


def test_bad_rows_are_named_and_good_ones_go_in(sqlite_context, tmp_path):
    add_study(sqlite_context)
    with sqlite_context.database.transaction() as tx:
        now = sqlite_context.clock.now()
        tx.session.add(RegisteredModel(name="m", task="tumour", classes=["glioma", "none"], created_at=now))
    text = (
        b"\xef\xbb\xbfStudy Instance UID;Accession-Number;TASK;Class;Labeled at;remark\r\n"
        + f"{UID};;tumour;glioma;2026-02-01;x\r\n".encode()
        + b";A-1;tumour;none;2026-02-01T08:00:00Z;x\r\n"
        + b";A-2;tumour;none;;x\r\n"
        + b"1.02.3;;tumour;none;;x\r\n"
        + f"{UID};;tumour;gliom;;x\r\n".encode()
        + f"{UID};;tumour;;;x\r\n".encode()
        + f"{UID};;tumour;none;01.02.2026;x\r\n".encode()
        + f"{UID};;tumour\r\n".encode()
        + f"{UID};;tum\xe4ur;none;;x\r\n".encode("latin-1")
        + f"{UID}.9;A-1;tumour;none;;x\r\n".encode()
        + b";;tumour;none;;x\r\n"
        + f"{UID};;tumour;none;2099-01-01;x\r\n".encode()
        + b"\r\n"
        + f'{UID};;other;"any ""thing""";;x\r\n'.encode()
    )
    summary = import_csv(sqlite_context, write(tmp_path, text), source="worklist")
    reasons = {fault.row: fault.reason for fault in summary.faults}
    assert (summary.rows, summary.accepted, summary.faulty) == (13, 3, 10)
    assert sorted(reasons) == [4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    words = "no study with|DICOM UID|glioma, none|label missing|ISO 8601|3 fields|UTF-8|different|no study:|future"
    expected = words.split("|")
    assert all(words in reasons[row] for row, words in zip(sorted(reasons), expected, strict=True))
    found = labels(sqlite_context)
    assert {item["source"] for item in found} == {"worklist"}
    assert {item["value"] for item in found} == {"glioma", "none", 'any "thing"'}
    assert {item["study_key"] for item in found} == {sqlite_context.pseudonyms.study(UID)}
    assert "row 6: the label is no class" in summary.text()


def test_a_row_tells_all_its_faults_and_quotes_none_of_them(sqlite_context, tmp_path):
    text = "study,task,label,source,labelled_at\nabc,Anna Miller,Miller^Anna,ward 7 of Dr. Who,yesterday\n"
    summary = import_csv(sqlite_context, write(tmp_path, text))
    (fault,) = summary.faults
    for words in (
        "task must be letters, digits and _ . : -",
        "source must be",
        "the label must be a class name",
        "UID",
        "ISO 8601",
    ):
        assert words in fault.reason
    assert not any(word in summary.text() for word in ("Anna", "Miller", "Who"))
    assert labels(sqlite_context) == []


@pytest.mark.parametrize("value", ["x" * 65, "a^b", "a\x7fb", "a\x9fb"])
def test_a_value_is_a_short_class_name(sqlite_context, tmp_path, value):
    summary = import_csv(sqlite_context, write(tmp_path, f"study,task,label\n{UID},t,{value}\n{UID},t,grade II (low)\n"))
    assert (summary.accepted, [fault.row for fault in summary.faults]) == (1, [2])


def test_the_source_of_a_whole_file_is_checked_too(sqlite_context, tmp_path):
    with pytest.raises(InvalidInput, match="source must be letters"):
        import_csv(sqlite_context, write(tmp_path, f"study,task,label\n{UID},tumour,none\n"), source="Anna Miller")


def test_a_task_that_no_model_knows_warns_and_names_the_known_ones(sqlite_context, tmp_path):
    with sqlite_context.database.transaction() as tx:
        for name, task in (("m", "tumour"), ("n", "bleeding")):
            tx.session.add(RegisteredModel(name=name, task=task, classes=["yes", "no"], created_at=sqlite_context.clock.now()))
    text = f"study,task,label\n{UID},tumor,yes\n{UID}.2,tumor,no\n{UID},tumour,yes\n"
    summary = import_csv(sqlite_context, write(tmp_path, text))
    assert (summary.accepted, summary.faulty) == (3, 0)
    (warning,) = summary.warnings
    assert "'tumor'" in warning
    assert "bleeding, tumour" in warning
    assert warning in summary.text()


def test_a_header_tells_all_its_faults(sqlite_context, tmp_path):
    with pytest.raises(InvalidInput, match=r"lacks task.* and has two columns for study"):
        import_csv(sqlite_context, write(tmp_path, "study,study uid,label\n"))


def test_two_studies_with_one_accession_number_are_ambiguous(sqlite_context, tmp_path):
    add_study(sqlite_context)
    add_study(sqlite_context, uid=f"{UID}.2")
    summary = import_csv(sqlite_context, write(tmp_path, "accession,task,label\nA-1,tumour,none\n"))
    assert "2 studies" in summary.faults[0].reason


def test_without_a_time_the_file_speaks_as_of_its_last_change(sqlite_context, tmp_path):
    for value, at in (("none", 1_700_000_000), ("glioma", 1_700_000_100), ("none", 1_700_000_200)):
        assert import_csv(sqlite_context, write(tmp_path, f"study,task,label\n{UID},tumour,{value}\n", at=at)).accepted == 1
    times = [item["labelled_at"] for item in labels(sqlite_context)]
    assert times == sorted(set(times))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("study,label\n", "lacks task"),
        ("task,label\n", "lacks study"),
        ("study,StudyInstanceUID,task,label\n", "two columns for study"),
        ('"study,task\n', "not CSV"),
    ],
)
def test_a_file_that_is_no_label_file_is_refused(sqlite_context, tmp_path, text, words):
    with pytest.raises(InvalidInput, match=words):
        import_csv(sqlite_context, write(tmp_path, text))


def test_a_missing_file_is_refused(sqlite_context, tmp_path):
    with pytest.raises(InvalidInput, match="not a file"):
        import_csv(sqlite_context, tmp_path / "none.csv")


def test_a_broken_quote_costs_its_row_only(sqlite_context, tmp_path):
    text = f'study,task,label\n{UID},"tum"our,none\n{UID},tumour,none\n'
    summary = import_csv(sqlite_context, write(tmp_path, text))
    assert (summary.accepted, [fault.row for fault in summary.faults]) == (1, [2])


def test_a_label_goes_on_in_its_studys_trace(sqlite_context, tmp_path):
    add_study(sqlite_context)
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    with sqlite_context.database.transaction() as tx:
        tx.session.get(Study, UID).traceparent = traceparent
    import_csv(sqlite_context, write(tmp_path, f"study,task,label\n{UID},t,glioma\n{UID}.2,t,glioma\n"))
    with sqlite_context.database.read() as session:
        found = {json.loads(row.body)["study_key"]: row.headers.get("traceparent") for row in session.exec(select(Outbox))}
    keys = [sqlite_context.pseudonyms.study(uid) for uid in (UID, f"{UID}.2")]
    assert found == {keys[0]: traceparent, keys[1]: None}
