"""A clock that was wrong for a while holds no study back."""

from datetime import timedelta

import pytest

from schemas.events import StudyReceived
from schemas.tables import Outbox, Study
from services.assembly.completion import complete_studies
from services.assembly.rules import Rules
from tests.retained_archive import Archive

RULES = Rules(30.0)


@pytest.mark.parametrize("looked_at_meanwhile", [False, True])
def test_a_clock_that_was_ahead_for_the_first_image_costs_one_quiet_period(context, looked_at_meanwhile):
    archive, clock = Archive(context), context.clock

    def look():
        with context.database.transaction() as tx:
            return complete_studies(tx, context.pseudonyms, RULES)

    real = clock.now()
    clock.set(real + timedelta(days=3650))
    archive.receive(1)
    if looked_at_meanwhile:
        assert look() == 0
    clock.set(real)
    archive.receive(1, 2)
    clock.advance(10)
    assert look() == 0
    clock.advance(30)
    assert look() == 1
    (study,) = archive.rows(Study)
    assert study.last_instance_at <= clock.now()
    (event,) = [StudyReceived.model_validate_json(row.body) for row in archive.rows(Outbox)]
    assert sum(series.instances for series in event.series) == 2
    archive.files.close()
