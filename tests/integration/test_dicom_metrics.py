"""What the listener counts: associations and instances by what became of them and by peer, bytes, and the time of each answer."""

import shutil
from collections import Counter
from contextlib import contextmanager

import pytest

from listeners.dicom import session, tally
from listeners.dicom.gate import Gate
from tests.dicom_listener import Listener, encoded, make, one
from tests.dicom_wire import accepted, rejection


class Measured:
    """Counts and observations, as a collector would get them."""

    def __init__(self):
        self.counts, self.seconds = Counter(), []

    def count(self, name, amount=1, **labels):
        self.counts[name, *sorted(labels.values())] += amount

    def observe(self, name, value, **labels):
        self.seconds.append((name, value, labels))


@pytest.fixture
def measured(monkeypatch):
    found = Measured()
    for module, name in ((session, "count"), (tally, "count"), (tally, "observe")):
        monkeypatch.setattr(module, name, getattr(found, name))
    return found


@pytest.fixture
def served(tmp_path, sqlite_template):
    shutil.copy(sqlite_template, tmp_path / "database.sqlite")

    @contextmanager
    def listening(**dicom):
        with Listener(tmp_path / "state", f"sqlite:///{tmp_path / 'database.sqlite'}", **dicom) as running:
            yield running

    return listening


def test_instances_are_counted_by_status_and_peer(measured, served, tmp_path):
    data = [make(f"counted-{number}", tmp_path) for number in range(2)]
    with served() as listener:
        for dataset in data:
            assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0
        assert one(listener, encoded(data[0]), "1..2").Status == 0x0117
    assert measured.counts["reclaim.dicom.instances", "0000", "TEST"] == 2
    assert measured.counts["reclaim.dicom.instances", "0117", "TEST"] == 1
    assert measured.counts["reclaim.dicom.bytes", "TEST"] == sum(len(encoded(dataset)) for dataset in [*data, data[0]])
    assert measured.counts["reclaim.dicom.associations", "TEST", "released"] == 3
    assert [(name, labels) for name, _, labels in measured.seconds] == [("reclaim.dicom.store.seconds", {})] * 3
    assert all(0 < seconds < 60 for _, seconds, _ in measured.seconds)


def test_refused_associations_are_counted_by_reason_and_by_the_peers_that_may_call(measured, served):
    with served(max_associations=1, calling_ae_titles=("MR1", "CT1")) as listener, accepted(listener.port, calling="MR1"):
        assert rejection(listener.port, calling="CT1") == (2, 3, 2)
        assert rejection(listener.port, calling="STRANGER") == (1, 1, 3)
    found = {key[1:]: number for key, number in measured.counts.items() if key[0] == "reclaim.dicom.associations"}
    assert found[("CT1", "rejected 2/3/2")] == 1
    assert found[("rejected 1/1/3", "unknown")] == 1
    assert "STRANGER" not in str(found)


def test_nobody_makes_endless_time_series(sqlite_context):
    gate = Gate(sqlite_context.settings.dicom, reception=None)
    labels = {gate.label(f"AE{number}") for number in range(1000)}
    assert len(labels) == 101
    assert gate.label("AE5") == "AE5"
