"""Every process of `reclaim up` is killed with SIGKILL while studies and labels flow; everything has its effect exactly once."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from schemas.vocabulary import CaseRole
from tests.loop_checks import check_once, settled
from tests.loop_samples import Sample, samples
from tests.loop_world import BATCH, KINDS, Killer, Loop, label_all, send_all, wait_for

SMALL = {CaseRole.TRIGGER: BATCH, CaseRole.TUNE: 4, CaseRole.GATE: 4}
LARGE = {CaseRole.TRIGGER: 10 * BATCH, CaseRole.TUNE: 60, CaseRole.GATE: 40}


def finish(loop: Loop, chosen: list[Sample], seconds: float) -> None:
    """Wait for the end of everything, hold it to the promises, and end the service in order."""
    try:
        wait_for("the end of everything", seconds, lambda: settled(loop, chosen), every=0.5)
    except AssertionError:
        check_once(loop, chosen)
        raise
    check_once(loop, chosen)
    assert loop.stop() == 0, loop.tail()


@pytest.mark.dcmtk
def test_the_loop_survives_two_kills(make_loop: Any, storescu: Path, tmp_path: Path) -> None:
    """The listener dies while it receives, the supervisor (with everything below it) while labels are on their way."""
    loop = make_loop().start()
    killer, chosen = Killer(loop, 7), samples(tmp_path / "small", SMALL, truthful=False)
    striking = threading.Thread(target=killer.later, args=("dicom", 0.1, 0.6))
    striking.start()
    send_all(loop, chosen)
    striking.join()
    label_all(loop, chosen[:10])
    killer.strike("supervisor")
    label_all(loop, chosen[10:])
    finish(loop, chosen, 120)
    assert killer.killed == ["dicom", "supervisor"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.dcmtk
@pytest.mark.parametrize("seed", [1, 2])
def test_the_loop_survives_random_kills(make_loop: Any, storescu: Path, tmp_path: Path, seed: int) -> None:
    """All processes in random order, twice, at random moments; labels are wrong on purpose, so that remedies run too."""
    loop = make_loop().start()
    killer, chosen = Killer(loop, seed), samples(tmp_path / "large", LARGE, truthful=False)
    victims = [*KINDS, *KINDS]
    killer.dice.shuffle(victims)
    faults: list[Exception] = []

    def feed() -> None:
        try:
            for start in range(0, len(chosen), 20):
                part = chosen[start : start + 20]
                send_all(loop, part, 300)
                label_all(loop, part, 300)
                time.sleep(killer.dice.uniform(0, 2))
        except Exception as error:  # noqa: BLE001 - told by the test's own thread
            faults.append(error)

    feeding = threading.Thread(target=feed)
    feeding.start()
    for name in victims:
        killer.later(name, 1, 8)
    feeding.join(400)
    assert not faults, faults
    finish(loop, chosen, 300)
    assert sorted(killer.killed) == sorted(victims)
