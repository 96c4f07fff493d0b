"""Rows that the index writer reads and writes past the ORM mean what the ORM means by them, on both databases."""

from datetime import timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from schemas.tables import Instance, Study
from schemas.vocabulary import StudyState
from services.assembly.batch_rows import (
    NewInstance,
    NewStudy,
    StudyRow,
    insert_instances,
    insert_studies,
    known_instances,
    locked_studies,
    studies_with_steps,
    update_studies,
)
from services.assembly.signals import create_step
from tests.assembly_world import CT

MANY = 700  # more than the greatest statement, and no power of two


@pytest.fixture
def now(clock):
    return clock.now().replace(microsecond=0)


def a_study(now, uid="1.2", **values):
    times = dict.fromkeys(("acquired_at", "first_instance_at", "last_instance_at"), now)
    return Study(**{"study_uid": uid, "study_key": uid * 3, "patient_key": "p" * 32, **times, **values})


def an_instance(number, now, study="1.2"):
    return NewInstance(f"{study}.9.{number}", study, f"{study}.9", CT, "1.2.1", "CT", "Ä'\"", f"aa/{number}.dcm", 2**40, "", now)


def test_what_the_orm_wrote_of_a_study_is_read(database, now):
    row = a_study(
        now,
        accession_key="a",
        calling_ae="AE",
        revision=3,
        instances=7,
        stated_instances=9,
        ring_at=9,
        opened_at=now - timedelta(microseconds=1),
        look_at=now + timedelta(seconds=1.5),
        traceparent="00-1",
    )
    with database.transaction() as tx:
        tx.session.add(row)
        wanted = {name: getattr(row, name) for name in StudyRow.__slots__}
        found = locked_studies(tx.session, ["1.2", "1.3"])
    assert {uid: {name: getattr(study, name) for name in StudyRow.__slots__} for uid, study in found.items()} == {"1.2": wanted}


def test_the_orm_reads_what_was_changed_in_studies_and_only_those_change(database, now):
    with database.transaction() as tx:
        tx.session.add_all([a_study(now, f"1.{number}") for number in range(5)])
        tx.session.commit()
        studies = locked_studies(tx.session, [f"1.{number}" for number in range(3)])
        for study in studies.values():
            study.state, study.revision, study.instances, study.stated_instances = StudyState.COMPLETE, 4, 5, 6
            study.last_instance_at, study.opened_at = now + timedelta(microseconds=123_456), now + timedelta(days=1)
            study.look_at, study.ring_at = None, 8
            study.accession_key, study.calling_ae, study.traceparent = "key", "AE", "00-2"
        update_studies(tx.session, studies.values())
    changed = {name for name in StudyRow.__slots__ if name not in {"study_uid", "study_key", "patient_key"}}
    with database.read() as session:
        for uid, study in studies.items():
            assert {name: getattr(session.get_one(Study, uid), name) for name in changed} == {
                name: getattr(study, name) for name in changed
            }
        assert [session.get_one(Study, uid).instances for uid in ("1.3", "1.4")] == [0, 0]


def test_instances_are_entered_as_the_orm_would_and_found_again(database, now):
    wanted = [an_instance(number, now + timedelta(microseconds=number)) for number in range(MANY)]
    with database.transaction() as tx:
        tx.session.add(a_study(now))
        tx.session.flush()
        insert_instances(tx.session, wanted)
        known = known_instances(tx.session, [*(instance.sop_instance_uid for instance in wanted[::2]), "9.9"])
    assert known.keys() == {instance.sop_instance_uid for instance in wanted[::2]}
    with database.read() as session:
        for instance in wanted[:3] + wanted[-3:]:
            row = session.get_one(Instance, instance.sop_instance_uid)
            assert {name: getattr(row, name) for name in instance._fields} == instance._asdict()
            assert row.purged_at is None
    some = known[wanted[4].sop_instance_uid]
    assert (some.path, some.size, some.transfer_syntax_uid) == ("aa/4.dcm", 2**40, "1.2.1")
    assert (some.received_at, some.purged_at) == (now + timedelta(microseconds=4), None)


def test_when_a_file_was_purged_is_read_as_the_orm_wrote_it(database, now):
    purged_at = now + timedelta(hours=1, microseconds=7)
    with database.transaction() as tx:
        tx.session.add(a_study(now))
        tx.session.flush()
        tx.session.add(Instance(**an_instance(1, now)._asdict(), purged_at=purged_at))
        tx.session.flush()
        assert known_instances(tx.session, ["1.2.9.1"])["1.2.9.1"].purged_at == purged_at


def test_an_instance_that_is_there_already_is_an_integrity_error(database, now):
    with pytest.raises(IntegrityError), database.transaction() as tx:
        tx.session.add(a_study(now))
        tx.session.flush()
        insert_instances(tx.session, [an_instance(1, now), an_instance(2, now), an_instance(1, now)])


def test_a_new_study_is_as_the_orm_would_enter_it_and_only_once(database, now):
    later = now + timedelta(microseconds=250)
    full = NewStudy("1.1", "k1", "p1", now, now, later, "a1", "AE", 7, "00-1", patients=2)
    with database.transaction() as tx:
        assert insert_studies(tx.session, [full]) == {"1.1"}
        assert insert_studies(tx.session, [full._replace(calling_ae="OTHER"), NewStudy("1.2", "k2", "p2", now, now, now)]) == {
            "1.2"
        }
    stated = {name: value for name, value in full._asdict().items() if name != "patients"}
    with database.read() as session:
        assert session.get_one(Study, "1.1").model_dump() == Study(**stated).model_dump()
        assert session.get_one(Study, "1.2").accession_key is None


def test_the_studies_that_steps_name_are_found(database):
    with database.transaction() as tx:
        create_step(tx, "9.1", ("1.1", "1.2"), "CT1", None)
        create_step(tx, "9.2", ("1.2",), "CT1", None)
        assert studies_with_steps(tx.session, ["1.1", "1.2", "1.3"]) == {"1.1", "1.2"}
        assert studies_with_steps(tx.session, ["1.3"]) == studies_with_steps(tx.session, []) == set()
