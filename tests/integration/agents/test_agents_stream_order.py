"""Which evaluation is the newest follows the stream that it judges, not the moment at which it was made."""

from datetime import timedelta

import pytest

from agents import repository
from schemas.tables import Evaluation
from schemas.vocabulary import Status


@pytest.fixture
def told(hospital):
    """Enter evaluations of a version: (cases of the stream, status, hour at which it was made)."""
    start = hospital.clock.now()

    def enter(*rows, version=1, model="brain_mri"):
        with hospital.database.transaction() as tx:
            for number, (cases, status, hour) in enumerate(rows):
                tx.session.add(
                    Evaluation(
                        evaluation_id=f"{version}-{number}-{cases}",
                        batch_id=f"{version}-{cases}",
                        model=model,
                        version=version,
                        status=status,
                        diagnosis="none",
                        cases=100,
                        stream_cases=cases,
                        metrics=[],
                        evidence={},
                        reclaim_rule=False,
                        summary="",
                        evaluated_at=start + timedelta(hours=hour),
                    )
                )
        return start

    return enter


def read(hospital, function, *arguments):
    with hospital.database.read() as session:
        return function(session, *arguments)


def test_a_decline_is_dated_by_the_stream(hospital, told):
    start = told((100, Status.HEALTHY, 1), (300, Status.DEGRADED, 3), (400, Status.DEGRADED, 4), (200, Status.HEALTHY, 5))
    assert read(hospital, repository.noticed_at, "brain_mri", 1) == start + timedelta(hours=3)


def test_a_correction_of_the_same_stream_counts_from_when_it_was_made(hospital, told):
    start = told((100, Status.HEALTHY, 1), (100, Status.DEGRADED, 2), (200, Status.DEGRADED, 3))
    assert read(hospital, repository.noticed_at, "brain_mri", 1) == start + timedelta(hours=2)


def test_no_decline_is_none(hospital, told):
    told((100, Status.DEGRADED, 1), (200, Status.HEALTHY, 2))
    assert read(hospital, repository.noticed_at, "brain_mri", 1) is None
    assert read(hospital, repository.noticed_at, "chest_xray", 1) is None


def test_the_last_decline_is_that_of_the_longest_stream(hospital, told):
    told((300, Status.DEGRADED, 3), (200, Status.DEGRADED, 4))
    assert read(hospital, repository.last_decline, "brain_mri").stream_cases == 300


def test_a_late_delivery_does_not_bring_an_old_versions_decline_back(hospital, told):
    told((300, Status.DEGRADED, 3), (300, Status.DEGRADED, 9))
    told((100, Status.DEGRADED, 5), version=2)
    assert read(hospital, repository.last_decline, "brain_mri").version == 2
    assert read(hospital, repository.last_decline, "chest_xray") is None
