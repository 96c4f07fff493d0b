"""What runs for every polled batch finds its rows by index, on a database that was never analysed, as a new one is."""

import gc
from datetime import UTC, datetime

import pytest
from sqlalchemy import event, text

from schemas.events import Label
from schemas.tables import Case
from schemas.topics import LABEL
from services.ground_truth import repository
from services.runtime.consumer import BatchConsumer, process
from services.runtime.messages import Record, headers_of


def statements(database, call):
    """The SQL of a call with its parameters."""
    found = []

    def note(connection, cursor, statement, parameters, context, executemany):
        found.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        with database.transaction() as tx:
            call(tx.session)
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    return found


def plans(database, call):
    with database.read() as session:
        connection = session.connection()
        return [
            row[-1]
            for statement, parameters in statements(database, call)
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]


@pytest.mark.parametrize(
    "call",
    [
        lambda session: repository.count_open(session, ("m", 1)),
        lambda session: repository.open_cases(session, ("m", 1), 100),
    ],
)
def test_open_cases_are_found_by_their_own_index(sqlite_database, call):
    (plan, *_) = plans(sqlite_database, call)
    assert "USING INDEX ix_case_open" in plan or "USING COVERING INDEX ix_case_open" in plan


def test_known_cases_and_labels_are_found_study_by_study(sqlite_database):
    found = plans(sqlite_database, lambda session: repository.known_cases(session, ["a"]))
    assert [line.split()[0] for line in found] == ["SCAN", "SEARCH"]
    assert "pk_case" in found[1] or "autoindex_case" in found[1]
    found = plans(sqlite_database, lambda session: repository.known_labels(session, ["a"]))
    assert [line.split()[0] for line in found] == ["SCAN", "SEARCH"]
    assert "PRIMARY KEY" in found[1]


def test_sqlite_sets_truths_by_the_primary_key_in_few_statements(sqlite_database):
    changes = [((f"{number:032x}", "m", 1), ("joined", "glioma", None)) for number in range(1500)]
    now = datetime(2026, 3, 2, tzinfo=UTC)
    found = statements(sqlite_database, lambda session: repository.set_truths(session, changes, now))
    assert [len(parameters) // 7 for _, parameters in found[1:]] == [1024, 512]
    for line in plans(sqlite_database, lambda session: repository.set_truths(session, changes[:1], now)):
        assert not line.startswith("SCAN c"), line


@pytest.mark.postgres
def test_postgresql_sets_truths_by_the_primary_key_before_it_was_ever_analysed(postgres_database_url):
    from services.ground_truth.statements import SET_TRUTHS
    from services.runtime.database import Database

    database = Database(postgres_database_url)
    with database.transaction() as tx:
        repository.look_up_by_key(tx.session)
        plan = tx.session.connection().exec_driver_sql(f"EXPLAIN {SET_TRUTHS['postgresql']}", ("[]",)).scalars().all()
        assert tx.session.execute(text(f'SELECT count(*) FROM "{Case.__tablename__}"')).scalar_one() == 0
    database.close()
    assert any("pk_case" in line for line in plan)
    assert not any("Seq Scan" in line for line in plan)


def test_cycles_are_collected_again_after_a_batch_whatever_became_of_it(sqlite_database):
    seen = []

    class Watcher(BatchConsumer):
        name, topics = "watcher", (LABEL,)

        def apply(self, tx, batch, prepared):
            seen.append(gc.isenabled())
            raise ZeroDivisionError

    at = datetime(2026, 3, 2, tzinfo=UTC)
    label = Label(study_key="a" * 32, task="t", value="v", source="s", labelled_at=at)
    record = Record(LABEL.name, 0, 0, label.study_key, headers_of(LABEL, "e", at), label.model_dump_json().encode())
    with pytest.raises(ZeroDivisionError):
        process(sqlite_database, Watcher(), [record])
    assert seen == [False]
    assert gc.isenabled()
