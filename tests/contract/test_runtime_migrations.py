"""The migrations build exactly the tables of `schemas.tables`, on both engines, also when several processes start at once."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

import schemas.tables
from schemas.tables import Audit
from services.runtime.database import Database
from services.runtime.migrations import NEWEST, UnknownTables, configuration, upgrade

START_UP = """
import sys
from services.runtime.database import Database
from services.runtime.migrations import upgrade
upgrade(Database(sys.argv[1]))
"""


def described(engine: Any) -> dict[str, Any]:
    """Columns, keys, indexes and checks of every table as the database itself reports them."""
    inspector = inspect(engine)
    return {table: _table(inspector, table) for table in inspector.get_table_names() if table != "alembic_version"}


def _table(inspector: Any, table: str) -> dict[str, Any]:
    columns = [(c["name"], str(c["type"]), c["nullable"], str(c["default"])) for c in inspector.get_columns(table)]
    return {
        "columns": sorted(columns),
        "key": inspector.get_pk_constraint(table)["constrained_columns"],
        "foreign keys": sorted(
            (f["name"], f["constrained_columns"], f["referred_table"]) for f in inspector.get_foreign_keys(table)
        ),
        "unique": sorted((u["name"], u["column_names"]) for u in inspector.get_unique_constraints(table)),
        "checks": sorted((c["name"], c["sqltext"]) for c in inspector.get_check_constraints(table)),
        "indexes": sorted((i["name"], i["column_names"], i["unique"]) for i in inspector.get_indexes(table)),
    }


def test_migrations_make_the_tables_of_the_schemas(database: Database, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    migrated = described(database.engine)
    with database.engine.begin() as connection:
        for table in reversed(inspect(connection).get_table_names()):
            connection.execute(text(f'DROP TABLE "{table}"' + (" CASCADE" if database.dialect == "postgresql" else "")))
    SQLModel.metadata.create_all(database.engine)
    assert migrated == described(database.engine)
    assert len(migrated) == len(SQLModel.metadata.tables) > 10
    assert schemas.tables.Audit.__tablename__ in migrated


def test_the_newest_revision_is_known_by_its_number(database: Database) -> None:
    with database.engine.connect() as connection:
        assert ScriptDirectory.from_config(configuration(connection)).get_current_head() == NEWEST


def test_tables_of_a_later_version_are_left_alone(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UnknownTables, match="9999"):
        upgrade(database)


def test_upgrading_twice_changes_nothing(database: Database) -> None:
    before = described(database.engine)
    upgrade(database)
    assert described(database.engine) == before


def test_four_processes_may_start_at_once(request: pytest.FixtureRequest, tmp_path: Path, database_url: str) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'reclaim.sqlite'}"
    if database_url.startswith("postgresql"):
        url = database_url
        _empty(url)
    starts = [subprocess.Popen([sys.executable, "-c", START_UP, url], stderr=subprocess.PIPE) for _ in range(4)]
    failures = [process.communicate(timeout=120)[1].decode() for process in starts]
    assert [process.returncode for process in starts] == [0, 0, 0, 0], failures
    engine = create_engine(url)
    assert len(described(engine)) == len(SQLModel.metadata.tables)
    engine.dispose()


def _empty(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()


@pytest.mark.parametrize("change", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"])
def test_the_audit_record_refuses_changes(database: Database, change: str) -> None:
    with database.transaction() as tx:
        tx.audit("user:tester", "tested", "subject", number=1)
    with pytest.raises(DBAPIError, match="append-only"), database.transaction() as tx:
        tx.session.execute(text(change))
    with database.read() as session:
        assert session.query(Audit).one().actor == "user:tester"


@pytest.mark.postgres
def test_the_audit_record_refuses_truncation(postgres_database_url: str) -> None:
    database = Database(postgres_database_url)
    with pytest.raises(DBAPIError, match="append-only"), database.transaction() as tx:
        tx.session.execute(text("TRUNCATE audit"))
    database.close()
