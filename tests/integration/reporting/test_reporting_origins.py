"""What a report says of a rollback and of a version that a person brought: neither is a repair."""

import pytest

from schemas.events import MaintenancePromotion
from schemas.topics import PROMOTION
from schemas.vocabulary import Verdict
from services.runtime import registry
from services.runtime.consumer import process
from tests.reporting_world import CLASSES, MODEL, baseline_rows, consumer_of, contents, record, reported, version_row


@pytest.fixture
def two_versions(sqlite_context, clock):
    with sqlite_context.database.transaction() as tx:
        registry.register_model(tx, MODEL, "brain-tumour", CLASSES, {})
        for number in (1, 2):
            row = version_row(number, clock, origin="registered", state="candidate" if number == 1 else "archived")
            registry.add_version(tx, row, baseline_rows(number), actor="test")
    clock.advance(60)
    return sqlite_context


def report_on(context, **values):
    data = MaintenancePromotion(model=MODEL, actor="user:ada", **values)
    process(context.database, consumer_of(context), [record(PROMOTION, data, "e", context.clock.now())])
    [report] = reported(context)
    return report, contents(context, report)["report.md"].decode()


@pytest.mark.parametrize(("before", "instead"), [(1, "in place of version 1"), (0, "No version served before it")])
def test_a_rollback_claims_neither_repair_nor_gate(two_versions, before, instead):
    numbers = {"challenger": 2, "champion_before": before, "champion_after": 2}
    report, text = report_on(two_versions, **numbers, verdict=Verdict.PROMOTE, reasons=("Asked for.",), origin="rollback")
    assert report.title == f"{MODEL}: version 2 serves again"
    assert "no gate was asked" in report.summary
    assert instead in text
    assert "version 0" not in text
    for wrong in ("passed the gate", "After a repair", "repaired"):
        assert wrong not in text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Verdict.PROMOTE, "It serves from now on"),
        (Verdict.REJECT, "Nothing has changed"),
        (Verdict.NEED_LABELS, "stays a candidate"),
    ],
)
def test_a_version_that_a_person_brought_is_no_repair(two_versions, verdict, words):
    after = 2 if verdict == Verdict.PROMOTE else 1
    numbers = {"challenger": 2, "champion_before": 1, "champion_after": after}
    report, text = report_on(two_versions, **numbers, verdict=verdict, reasons=("Because.",), origin="owner")
    assert "Brought by user:ada, version 2" in report.summary
    assert words in f"{report.summary} {text}"
    for wrong in ("After a repair", "the decline is not repaired", "waits in the shadow"):
        assert wrong not in text
