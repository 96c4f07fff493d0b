"""MPPS and storage commitment handlers as functions: every status they answer, what they keep, and that nothing breaks them."""

import logging
from io import BytesIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom.dsutils import decode
from sqlmodel import select

from listeners.dicom.commitment import commitment_handlers
from listeners.dicom.mpps import MPPS, mpps_handlers
from listeners.dicom.normalized import printable_ae
from listeners.dicom.operations import N_ACTION_RQ, N_CREATE_RQ, N_SET_RQ, Operation, Peer
from schemas.announcements import Commitment, NamedInstance, PerformedStep, StepStudy
from schemas.settings import PeerSettings
from services.assembly.reporter import PUSH_MODEL, PUSH_MODEL_INSTANCE
from services.runtime.errors import Transient

CT = "1.2.840.10008.5.1.4.1.1.2"
STEP = "1.2.826.0.1.3680043.9.1"
IMPLICIT = "1.2.840.10008.1.2"
PEER = Peer("CT1", "RECLAIM", "192.0.2.1")
PEERS = {"scanner": PeerSettings(ae_title="CT1", host="192.0.2.1", port=104)}


def dataset(**elements):
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def reference(number, sop_class=CT):
    return dataset(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=f"1.2.3.{number}")


def performed(*numbers):
    return [dataset(ReferencedImageSequence=[reference(number) for number in numbers])]


def new_step(**changes):
    elements = {
        "PerformedProcedureStepStatus": "IN PROGRESS",
        "ScheduledStepAttributesSequence": [dataset(StudyInstanceUID="1.2.3")],
        "PatientName": "DOE^JANE",
        "PatientID": "4711",
        "PatientBirthDate": "19700101",
    }
    return dataset(**{key: value for key, value in (elements | changes).items() if value is not None})


def command(**elements):
    return dataset(**{key: value for key, value in elements.items() if value is not None})


@pytest.fixture
def mpps(sqlite_database):
    handlers = mpps_handlers(sqlite_database)

    def call(field, data, *, uid=STEP, sop_class=MPPS, peer=PEER):
        side = "Affected" if field == N_CREATE_RQ else "Requested"
        elements = command(**{f"{side}SOPClassUID": sop_class, f"{side}SOPInstanceUID": uid})
        return handlers[MPPS, field](Operation(elements, data, MPPS, IMPLICIT, peer))

    return call


def rows(database, table):
    with database.read() as session:
        return session.exec(select(table)).all()


def test_a_step_runs_its_course_and_keeps_no_patient(mpps, sqlite_database):
    assert mpps(N_CREATE_RQ, new_step()).status == 0
    assert mpps(N_SET_RQ, dataset(PerformedSeriesSequence=performed(1))).status == 0
    done = dataset(PerformedProcedureStepStatus="COMPLETED", PerformedSeriesSequence=performed(1, 2))
    reply = mpps(N_SET_RQ, done)
    assert (reply.status, reply.elements["AffectedSOPInstanceUID"]) == (0, STEP)
    (step,) = rows(sqlite_database, PerformedStep)
    assert (step.state, step.calling_ae) == ("COMPLETED", "CT1")
    assert [(row.step_uid, row.study_uid) for row in rows(sqlite_database, StepStudy)] == [(STEP, "1.2.3")]
    assert {row.sop_instance_uid for row in rows(sqlite_database, NamedInstance)} == {"1.2.3.1", "1.2.3.2"}
    with sqlite_database.read() as session:
        everything = str([session.connection().exec_driver_sql(f'SELECT * FROM "{name}"').all() for name in tables(session)])
    for identity in ("DOE", "4711", "19700101"):
        assert identity not in everything


def tables(session):
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    return [row[0] for row in session.connection().exec_driver_sql(query)]


def test_images_and_other_composite_instances_are_named(mpps, sqlite_database):
    mpps(N_CREATE_RQ, new_step())
    series = dataset(ReferencedImageSequence=[reference(1)], ReferencedNonImageCompositeSOPInstanceSequence=[reference(2)])
    assert mpps(N_SET_RQ, dataset(PerformedSeriesSequence=[series, series])).status == 0
    assert {row.sop_instance_uid for row in rows(sqlite_database, NamedInstance)} == {"1.2.3.1", "1.2.3.2"}


def test_a_step_without_uid_gets_one(mpps, sqlite_database):
    reply = mpps(N_CREATE_RQ, new_step(), uid=None)
    assert reply.status == 0
    assert rows(sqlite_database, PerformedStep)[0].sop_instance_uid == reply.elements["AffectedSOPInstanceUID"]


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (0x0120, None),
        (0x0120, new_step(PerformedProcedureStepStatus=None)),
        (0x0121, new_step(PerformedProcedureStepStatus="")),
        (0x0106, new_step(PerformedProcedureStepStatus="COMPLETED")),
        (0x0106, new_step(PerformedProcedureStepStatus="DONE")),
        (0x0120, new_step(ScheduledStepAttributesSequence=None)),
        (0x0121, new_step(ScheduledStepAttributesSequence=[])),
        (0x0120, new_step(ScheduledStepAttributesSequence=[Dataset()])),
        (0x0121, new_step(ScheduledStepAttributesSequence=[dataset(StudyInstanceUID="")])),
        (0x0106, new_step(ScheduledStepAttributesSequence=[dataset(StudyInstanceUID="../../etc")])),
        (0x0106, new_step(PerformedSeriesSequence=[dataset(ReferencedImageSequence=[Dataset()])])),
    ],
)
def test_a_step_that_cannot_be_used_is_refused_and_not_kept(mpps, sqlite_database, status, data):
    reply = mpps(N_CREATE_RQ, data)
    assert reply.status == status
    assert 0 < len(reply.elements["ErrorComment"]) <= 64
    assert rows(sqlite_database, PerformedStep) == []


def test_what_contradicts_a_steps_life_is_refused(mpps):
    assert mpps(N_SET_RQ, dataset(PerformedProcedureStepStatus="COMPLETED")).status == 0x0112
    mpps(N_CREATE_RQ, new_step())
    assert mpps(N_CREATE_RQ, new_step()).status == 0x0111
    assert mpps(N_SET_RQ, dataset(PerformedProcedureStepStatus="FINISHED")).status == 0x0106
    assert mpps(N_SET_RQ, None).status == 0
    assert mpps(N_SET_RQ, dataset(PerformedProcedureStepStatus="DISCONTINUED")).status == 0
    late = mpps(N_SET_RQ, dataset(PerformedProcedureStepStatus="COMPLETED"))
    assert (late.status, late.elements["ErrorID"]) == (0x0110, 0xA710)


def test_nobody_else_may_update_a_step(mpps, sqlite_database):
    mpps(N_CREATE_RQ, new_step())
    ended = dataset(PerformedProcedureStepStatus="DISCONTINUED")
    assert mpps(N_SET_RQ, ended, peer=Peer("EVIL", "RECLAIM", "192.0.2.9")).status == 0x0124
    assert rows(sqlite_database, PerformedStep)[0].state == "IN PROGRESS"
    assert mpps(N_SET_RQ, ended).status == 0


def test_only_the_titles_of_the_setting_may_announce_steps(sqlite_database):
    handlers = mpps_handlers(sqlite_database, ["CT2"])
    create = handlers[MPPS, N_CREATE_RQ]
    asked = command(AffectedSOPClassUID=MPPS, AffectedSOPInstanceUID=STEP)
    assert create(Operation(asked, new_step(), MPPS, IMPLICIT, PEER)).status == 0x0124
    assert create(Operation(asked, new_step(), MPPS, IMPLICIT, Peer("CT2", "RECLAIM", "192.0.2.2"))).status == 0
    with sqlite_database.read() as session:
        assert [step.calling_ae for step in session.exec(select(PerformedStep))] == ["CT2"]


def test_a_command_for_something_else_is_refused(mpps):
    assert mpps(N_CREATE_RQ, new_step(), sop_class=CT).status == 0x0119
    assert mpps(N_CREATE_RQ, new_step(), uid="abc").status == 0x0117
    assert mpps(N_SET_RQ, Dataset(), uid="1" * 65).status == 0x0117


@pytest.fixture
def commitment(sqlite_database):
    handler = commitment_handlers(sqlite_database, PEERS)[PUSH_MODEL, N_ACTION_RQ]

    def call(data, *, peer=PEER, **changes):
        elements = {"RequestedSOPClassUID": PUSH_MODEL, "RequestedSOPInstanceUID": PUSH_MODEL_INSTANCE, "ActionTypeID": 1}
        return handler(Operation(command(**(elements | changes)), data, PUSH_MODEL, IMPLICIT, peer))

    return call


def asked(*numbers, transaction="1.2.99"):
    return dataset(TransactionUID=transaction, ReferencedSOPSequence=[reference(number) for number in numbers])


def test_a_request_waits_for_the_index(sqlite_database):
    """Only the index knows that another study has a UID: before it has caught up, nothing may be said of it."""
    handler = commitment_handlers(sqlite_database, PEERS, lambda _: False)[PUSH_MODEL, N_ACTION_RQ]
    elements = {"RequestedSOPClassUID": PUSH_MODEL, "RequestedSOPInstanceUID": PUSH_MODEL_INSTANCE, "ActionTypeID": 1}
    assert handler(Operation(command(**elements), asked(1), PUSH_MODEL, IMPLICIT, PEER)).status == 0x0213
    assert rows(sqlite_database, Commitment) == []


def test_a_request_is_kept_before_it_is_answered(commitment, sqlite_database):
    reply = commitment(asked(1, 2))
    assert (reply.status, reply.elements["AffectedSOPInstanceUID"]) == (0, PUSH_MODEL_INSTANCE)
    (row,) = rows(sqlite_database, Commitment)
    assert (row.transaction_uid, row.peer_ae, row.own_ae, row.state) == ("1.2.99", "CT1", "RECLAIM", "owed")
    assert len(rows(sqlite_database, NamedInstance)) == 2
    assert commitment(asked(2, 1)).status == 0
    assert commitment(asked(3)).status == 0x0131


@pytest.mark.parametrize(
    ("status", "data", "changes"),
    [
        (0x0115, None, {}),
        (0x0115, asked(), {}),
        (0x0115, dataset(TransactionUID="1.2.99"), {}),
        (0x0115, dataset(ReferencedSOPSequence=[reference(1)]), {}),
        (0x0115, asked(1, transaction="no uid"), {}),
        (0x0115, dataset(TransactionUID="1.2.99", ReferencedSOPSequence=[Dataset()]), {}),
        (0x0112, asked(1), {"RequestedSOPInstanceUID": "1.2.3"}),
        (0x0119, asked(1), {"RequestedSOPClassUID": CT}),
        (0x0123, asked(1), {"ActionTypeID": 2}),
        (0x0123, asked(1), {"ActionTypeID": None}),
        (0x0110, asked(1), {"peer": Peer("NOBODY", "RECLAIM", "192.0.2.9")}),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_and_not_kept(commitment, sqlite_database, status, data, changes):
    assert commitment(data, **changes).status == status
    assert rows(sqlite_database, Commitment) == []


def test_a_database_that_is_away_is_a_resource_limitation(commitment, mpps, sqlite_database, monkeypatch):
    def away():
        raise Transient("the database is away")

    monkeypatch.setattr(sqlite_database, "transaction", away)
    assert commitment(asked(1)).status == 0x0213
    assert mpps(N_CREATE_RQ, new_step()).status == 0x0213


def test_a_defect_is_a_processing_failure_that_quotes_nothing(mpps, sqlite_database, monkeypatch, caplog):
    def broken():
        raise ValueError("DOE^JANE")

    monkeypatch.setattr(sqlite_database, "transaction", broken)
    with caplog.at_level(logging.INFO):
        assert mpps(N_CREATE_RQ, new_step()).status == 0x0110
    assert "DCM-902 ValueError" in caplog.text
    assert "DOE" not in caplog.text


def test_a_title_cannot_forge_a_log_line():
    assert printable_ae("CT1\r\nDCM-000 all is well") == "CT1??DCM-000?all"


VALUES = st.one_of(st.text(max_size=70), st.sampled_from(["IN PROGRESS", "COMPLETED", "1.2.3", "", STEP]))
UIDS = ["StudyInstanceUID", "ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "TransactionUID"]
ITEMS = st.recursive(
    st.dictionaries(
        st.sampled_from(["StudyInstanceUID", "ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "TransactionUID"]),
        VALUES,
        max_size=4,
    ),
    lambda inner: st.dictionaries(
        st.sampled_from(
            [
                "ScheduledStepAttributesSequence",
                "PerformedSeriesSequence",
                "ReferencedImageSequence",
                "ReferencedSOPSequence",
                "ReferencedNonImageCompositeSOPInstanceSequence",
            ]
        ),
        st.lists(inner, max_size=3),
        max_size=4,
    ),
    max_leaves=8,
)


def built(tree, status=None):
    made = Dataset()
    for keyword, value in tree.items():
        setattr(made, keyword, Sequence([built(item) for item in value]) if isinstance(value, list) else value)
    if status is not None:
        made.PerformedProcedureStepStatus = status
    return made


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ITEMS, VALUES, VALUES, st.sampled_from([N_CREATE_RQ, N_SET_RQ, N_ACTION_RQ]))
def test_any_data_set_gets_a_status(mpps, commitment, tree, status, uid, field):
    if field == N_ACTION_RQ:
        reply = commitment(built(tree))
        allowed = {0x0000, 0x0106, 0x0115, 0x0131}
    else:
        reply = mpps(field, built(tree, status), uid=uid)
        allowed = {0x0000, 0x0106, 0x0111, 0x0112, 0x0117, 0x0120, 0x0121}
        if field == N_SET_RQ:
            allowed.add(0x0110)
    assert reply.status in allowed
    assert reply.status != 0x0110 or reply.elements.get("ErrorID") == 0xA710


def element(group, number, value):
    return group.to_bytes(2, "little") + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value


READ = [(0x0008, 0x1195), (0x0008, 0x1199), (0x0020, 0x000D), (0x0040, 0x0252), (0x0040, 0x0270), (0x0040, 0x0340)]
ELEMENTS = st.lists(
    st.builds(
        lambda tag, value: element(*tag, value),
        st.sampled_from(
            [(0x0008, 0x1195), (0x0008, 0x1199), (0x0020, 0x000D), (0x0040, 0x0252), (0x0040, 0x0270), (0x0040, 0x0340)]
        ),
        st.binary(max_size=60) | st.just(element(0xFFFE, 0xE000, element(0x0020, 0x000D, b"1.2.3 "))),
    ),
    max_size=5,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ELEMENTS, st.sampled_from([N_CREATE_RQ, N_SET_RQ, N_ACTION_RQ]))
def test_any_bytes_get_a_status_and_never_count_as_our_defect(mpps, commitment, elements, field):
    """Implicit VR: the elements that the handlers read, with any bytes in them."""
    try:
        data = decode(BytesIO(b"".join(elements)), True, True)
    except Exception:  # noqa: BLE001 - pydicom raises many kinds
        return  # the association answers 0110 before any handler is asked
    reply = commitment(data) if field == N_ACTION_RQ else mpps(field, data, uid="1.2.840.1")
    assert reply.status != 0x0110 or reply.elements.get("ErrorID") == 0xA710
