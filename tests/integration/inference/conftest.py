"""The consumer that scores studies, closed after each test."""

import pytest

from services.inference.app import make_consumer


@pytest.fixture
def consumer(context):
    """Once on each database engine."""
    made = make_consumer(context)
    yield made
    made.close()


@pytest.fixture
def sqlite_consumer(sqlite_context):
    made = make_consumer(sqlite_context)
    yield made
    made.close()
