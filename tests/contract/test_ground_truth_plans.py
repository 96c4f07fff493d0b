"""What runs for every polled batch finds its rows by index, on a database that was never analysed, as a new one is."""

import pytest
from sqlalchemy import event, text

from schemas.tables import Case
from services.ground_truth import repository


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


def test_labelled_cases_are_found_study_by_study(sqlite_database):
    found = plans(sqlite_database, lambda session: list(repository.labelled_cases(session, ["a"])))
    assert [line.split()[0] for line in found] == ["SCAN", "SEARCH", "SEARCH"]
    assert "pk_case" in found[1] or "autoindex_case" in found[1]


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
