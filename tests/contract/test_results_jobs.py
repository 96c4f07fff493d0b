"""Results as durable jobs, on SQLite and PostgreSQL: entered once, claimed by one, fenced, postponed, given up, replayed."""

from datetime import timedelta

import pytest
from sqlmodel import select

from schemas.events import Prediction
from schemas.results import ResultJob
from schemas.settings import ResultsSettings
from schemas.tables import Audit, DeadLetter, Instance, ModelVersion, Outbox, RegisteredModel, Study
from schemas.topics import PREDICTION
from schemas.vocabulary import ResultState
from services.assembly.headers import InstanceFacts
from services.assembly.index import ArchiveIndex, StoredFile
from services.assembly.repository import Recorded, series_of
from services.results import jobs, repository
from services.results.handlers import Results
from services.runtime.archive import instance_path
from services.runtime.consumer import process
from services.runtime.dead_letters import replay
from services.runtime.errors import InvalidInput
from services.runtime.identity import Pseudonyms
from services.runtime.messages import Record, headers_of
from services.runtime.result_uids import result_uid
from tests.conftest import START

LIMITS = ResultsSettings(destination="pacs", first_delay_s=30, longest_delay_s=100, max_attempts=3, lease_s=60)
CT = "1.2.840.10008.5.1.4.1.1.2"


def prediction(number=1, **changes):
    facts = {
        "study_key": f"{number:032x}",
        "patient_key": "b" * 32,
        "revision": 1,
        "model": "m",
        "version": 1,
        "serving": True,
        "task": "t",
        "probabilities": {"a": 0.7, "b": 0.3},
        "predicted": "a",
        "acquired_at": START,
        "scored_at": START,
    }
    return Prediction(**facts | changes)


def record(data, number=1):
    return Record(
        PREDICTION.name,
        0,
        number,
        data.study_key,
        headers_of(PREDICTION, f"event-{number}", START),
        data.model_dump_json().encode(),
    )


def enter(database, *predictions, destination="pacs"):
    process(database, Results(destination), [record(each, number) for number, each in enumerate(predictions, 1)])


def claim(database, owner="one", limits=LIMITS):
    with database.transaction() as tx:
        return jobs.claim_next(tx, owner, limits)


def write(database, function, *arguments):
    with database.transaction() as tx:
        return function(tx, *arguments)


def job(database, job_id="event-1"):
    with database.read() as session:
        return session.get(ResultJob, job_id)


def rows(database, table):
    with database.read() as session:
        return session.exec(select(table)).all()


def test_only_the_champion_s_predictions_become_jobs_and_each_once(database):
    enter(database, prediction(1), prediction(2, serving=False))
    enter(database, prediction(1), prediction(2, serving=False))
    (found,) = rows(database, ResultJob)
    assert (found.job_id, found.state, found.destination, found.attempt) == ("event-1", "queued", "pacs", 0)
    assert Prediction.model_validate_json(found.body) == prediction(1)


def test_without_destination_predictions_pass(database):
    enter(database, prediction(1), destination="")
    assert not rows(database, ResultJob)


def test_a_job_is_claimed_by_one_and_the_longest_due_first(database, clock):
    enter(database, prediction(1))
    clock.advance(1)
    process(database, Results("pacs"), [record(prediction(2), 2)])
    assert [claim(database, owner).job_id for owner in ("one", "two")] == ["event-1", "event-2"]
    assert claim(database, "three") is None


def test_a_lost_lease_is_taken_over_and_the_loser_may_not_write(database, clock):
    enter(database, prediction(1))
    first = claim(database, "one")
    clock.advance(61)
    second = claim(database, "two")
    assert (second.attempt, second.owner) == (2, "two")
    for late in (jobs.succeed, jobs.give_up, jobs.postpone):
        arguments = {jobs.succeed: ({},), jobs.give_up: ("e", "r"), jobs.postpone: ("r", LIMITS)}[late]
        with pytest.raises(jobs.JobLost):
            write(database, late, first, *arguments)
    write(database, jobs.succeed, second, {"Comprehensive SR Storage": "0000"})
    assert job(database).state == ResultState.SENT
    assert claim(database) is None
    (audit,) = rows(database, Audit)
    assert (audit.action, audit.detail["attempts"], audit.detail["destination"]) == ("result.sent", 2, "pacs")


def test_failures_wait_longer_each_time_and_end_as_a_dead_letter_that_can_be_replayed(database, clock):
    enter(database, prediction(1))
    waits = []
    for _ in range(3):
        claimed = claim(database)
        gave_up = write(database, jobs.postpone, claimed, "nobody answers", LIMITS)
        waits.append((job(database).due_at - clock.now()).total_seconds())
        assert claim(database) is None
        clock.advance(waits[-1])
    assert (waits[:2], gave_up) == ([30, 60], True)
    assert job(database).state == ResultState.GIVEN_UP
    (letter,) = rows(database, DeadLetter)
    assert (letter.consumer, letter.event_id, letter.error) == ("results", "event-1", "Undelivered")
    assert "nobody answers" in letter.reason
    assert "reclaim pacs echo" in letter.reason
    assert [row.action for row in rows(database, Audit)] == ["result.given_up"]

    replay(database, actor="user:tester")
    (again,) = [row for row in rows(database, Outbox) if row.topic == PREDICTION.name]
    process(database, Results("other"), [Record(again.topic, 0, 9, again.key, again.headers, again.body)])
    fresh = job(database)
    assert (fresh.state, fresh.attempt, fresh.destination, fresh.error) == (ResultState.QUEUED, 0, "other", "")
    write(database, jobs.succeed, claim(database), {})
    assert job(database).state == ResultState.SENT


def test_a_worker_that_dies_each_time_exhausts_the_attempts(database, clock):
    enter(database, prediction(1))
    for _ in range(3):
        assert claim(database) is not None
        clock.advance(61)
    assert claim(database) is None
    assert job(database).state == ResultState.GIVEN_UP
    assert [row.error for row in rows(database, DeadLetter)] == ["Exhausted"]


def test_a_released_job_costs_no_attempt(database):
    enter(database, prediction(1))
    write(database, jobs.release, claim(database))
    assert (job(database).attempt, job(database).state) == (0, ResultState.QUEUED)
    assert claim(database).attempt == 1


def test_all_that_waits_for_a_destination_is_due_when_it_is_back(database, clock):
    enter(database, prediction(1), prediction(2))
    for owner in ("one", "two"):
        write(database, jobs.postpone, claim(database, owner), "away", LIMITS)
    assert claim(database) is None
    write(database, repository.hasten, "elsewhere")
    assert claim(database) is None
    write(database, repository.hasten, "pacs")
    assert {claim(database, owner).job_id for owner in ("one", "two")} == {"event-1", "event-2"}


# What a result is about


NAMES = Pseudonyms(b"test key, thirty-two bytes long!")
SYNTAX = "1.2.840.10008.1.2.1"


def instance(uid, series="1.2.3.1", modality="CT"):
    facts = InstanceFacts(CT, uid, "1.2.3", series, modality, "", "PAT-1", "", "", START)
    return StoredFile(facts, SYNTAX, 1, "0" * 64, START, "CT1")


def path_of(uid):
    return instance_path(NAMES.study("1.2.3"), NAMES.series("1.2.3.1"), uid)


def register(database, modalities=("CT",)):
    with database.transaction() as tx:
        tx.session.add(
            RegisteredModel(name="m", task="t", classes=["a", "b"], selection={"modalities": list(modalities)}, created_at=START)
        )
        tx.session.flush()
        tx.session.add(ModelVersion(model="m", version=1, bundle="m/1", sha256="ab" * 32, created_at=START))


def store(database, *instances):
    index = ArchiveIndex(database, NAMES)
    return [index.enter(each) for each in instances]


def subject_of(database):
    with database.read() as session:
        return repository.subject(session, NAMES.study("1.2.3"), "m", 1)


def test_the_subject_is_the_images_of_the_model_s_modalities_without_our_own_results(database):
    register(database)
    own = result_uid("SR", "x")
    store(
        database, instance("1.2.3.1.2"), instance("1.2.3.1.1"), instance("1.2.3.9", "1.2.3.2", "SR"), instance(own, result_uid("s"))
    )
    subject = subject_of(database)
    assert [each.sop_instance_uid for each in subject.images] == ["1.2.3.1.1", "1.2.3.1.2"]
    assert (subject.study_uid, subject.header_path, subject.weights) == ("1.2.3", path_of("1.2.3.1.1"), "ab" * 32)


def test_the_header_is_that_of_an_image_whose_file_is_there(database):
    register(database)
    store(database, instance("1.2.3.1.1"), instance("1.2.3.1.2"))
    with database.transaction() as tx:
        row = tx.session.get(Instance, "1.2.3.1.1")
        row.purged_at = START
        tx.session.add(row)
    subject = subject_of(database)
    assert (subject.header_path, len(subject.images)) == (path_of("1.2.3.1.2"), 2)


def test_a_subject_that_is_not_there_says_what_is_missing(database):
    with pytest.raises(InvalidInput, match="no version 1 of model m"):
        subject_of(database)
    register(database, ("MR",))
    with pytest.raises(InvalidInput, match="no study"):
        subject_of(database)
    store(database, instance("1.2.3.1.1"))
    with pytest.raises(InvalidInput, match="no images"):
        subject_of(database)


# The loop guard


def progress(database):
    with database.read() as session:
        row = session.get(Study, "1.2.3")
        return row.state, row.revision, row.instances, [series.series_uid for series in series_of(session, "1.2.3")]


def complete(database):
    with database.transaction() as tx:
        row = tx.session.get(Study, "1.2.3")
        row.state, row.revision = "complete", row.revision + 1
        tx.session.add(row)


def test_a_result_that_comes_back_is_kept_and_changes_nothing(database):
    store(database, instance("1.2.3.1.1"))
    complete(database)
    own = [instance(result_uid(kind, "x"), result_uid("series", kind), kind) for kind in ("SR", "OT")]
    assert store(database, *own, *own) == [Recorded.NEW, Recorded.NEW, Recorded.KNOWN, Recorded.KNOWN]
    assert progress(database) == ("complete", 1, 1, ["1.2.3.1"])
    assert len(rows(database, Instance)) == 3
    store(database, instance("1.2.3.1.2"))
    assert progress(database) == ("open", 1, 2, ["1.2.3.1"]), "a late image still opens the study, without our results"


def test_a_result_whose_study_is_not_here_does_not_start_one(database, clock):
    store(database, instance(result_uid("SR", "x"), result_uid("series"), "SR"))
    assert progress(database) == ("complete", 0, 0, [])
    clock.advance(timedelta(days=1).total_seconds())
    store(database, instance("1.2.3.1.1"))
    assert progress(database) == ("open", 0, 1, ["1.2.3.1"])


def test_results_and_images_in_one_batch_are_told_apart(database):
    batch = [instance(result_uid("SR", "x"), result_uid("series"), "SR"), instance("1.2.3.1.1"), instance("1.2.3.1.2")]
    assert ArchiveIndex(database, NAMES).enter_all(batch) == [Recorded.NEW] * 3
    assert progress(database) == ("open", 0, 2, ["1.2.3.1"])
