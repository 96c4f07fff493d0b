"""The join's consumer under SIGKILL at random moments, on both databases: every case once, every batch whole."""

import pytest

from tests.benchmarks.join_bench.crash import survive


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_kills_at_random_moments_lose_and_double_nothing(database_url, tmp_path, seed):
    killed = survive(tmp_path / "crash", cases=6_000, kills=6, seed=seed, url=database_url)
    assert killed.faults == []
    assert killed.kills == 6
