"""The story of a model that declined, as the reports are to tell it."""

import pytest

from tests.reporting_world import tell


@pytest.fixture
def story(context, clock):
    """What `told` tells, once on each database engine."""
    return tell(context, clock)


@pytest.fixture
def told(sqlite_context, clock):
    return tell(sqlite_context, clock)
