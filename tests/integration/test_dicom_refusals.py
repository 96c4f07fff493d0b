"""What is refused on the wire, with which status, and that nothing is left behind (PS3.4 Table B.2-1, PS3.7 Annex C)."""

import shutil
import time

import numpy as np
import pytest
from pydicom.uid import generate_uid
from pynetdicom.dimse_messages import C_STORE_RQ

from listeners.dicom import messages, reception
from tests.dicom_listener import (
    CT,
    EXPLICIT,
    MR,
    SC,
    Listener,
    associated,
    encoded,
    make,
    one,
    refused,
    request_of,
    send_by_hand,
    store,
)
from tests.dicom_wire import ACCEPT, accepted, association_request, command, connect, p_data, receive_pdu, status_in


@pytest.fixture(scope="module")
def listener(tmp_path_factory, sqlite_template):
    folder = tmp_path_factory.mktemp("listener")
    shutil.copy(sqlite_template, folder / "database.sqlite")
    with Listener(folder / "state", f"sqlite:///{folder / 'database.sqlite'}", sop_classes=(SC,)) as running:
        yield running


def test_sop_class_of_dataset_differs_from_command(listener, tmp_path):
    dataset, before = make("class-mismatch", tmp_path), listener.files()
    response = one(listener, encoded(dataset), dataset.SOPInstanceUID, CT)
    refused(listener, before, response, 0xA900)
    assert response.OffendingElement in ([0x00080016], 0x00080016)


def test_instance_uid_of_dataset_differs_from_command(listener, tmp_path):
    before = listener.files()
    refused(listener, before, one(listener, encoded(make("uid-mismatch", tmp_path)), generate_uid()), 0xA900)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "../../etc", "1." * 40])
def test_missing_or_invalid_filing_uid(listener, tmp_path, keyword, value):
    dataset, before = make(f"filing-{keyword}-{value}"[:20].replace("/", "_"), tmp_path), listener.files()
    if value is None:
        del dataset[keyword]
    else:
        setattr(dataset, keyword, value)
    refused(listener, before, one(listener, encoded(dataset), dataset.SOPInstanceUID), 0xA900)


@pytest.mark.parametrize("cut", [1, 500, 1100])
def test_dataset_cut_inside_an_element(listener, tmp_path, cut):
    dataset, before = make("cut", tmp_path), listener.files()
    refused(listener, before, one(listener, encoded(dataset)[:-cut], dataset.SOPInstanceUID), 0xC000)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", EXPLICIT, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
def test_dataset_is_noise(listener, syntax):
    before, noise = listener.files(), np.random.default_rng(5).integers(0, 255, 5000, dtype=np.uint8).tobytes()
    refused(listener, before, one(listener, noise, generate_uid(), syntax=syntax), 0xC000)


def test_dataset_is_empty(listener):
    before = listener.files()
    with associated(listener.port) as association:
        response = send_by_hand(association, b"\x02", 0x0001)
    refused(listener, before, response, 0xC000)


def test_a_store_without_dataset_is_answered(listener):
    before = listener.files()
    with associated(listener.port) as association:
        refused(listener, before, send_by_hand(association, None, 0x0101), 0xC000)
        assert association.is_established


@pytest.mark.parametrize("uid", ["../../x", "1.2.3/4", "1..2", "1.2\n3"])
def test_invalid_instance_uid(listener, tmp_path, uid):
    dataset, before = make("invalid-uid", tmp_path), listener.files()
    dataset.SOPInstanceUID = uid
    refused(listener, before, one(listener, encoded(dataset), uid), 0x0117)


def test_sop_class_differs_from_the_context(listener, tmp_path):
    dataset, before = make("context", tmp_path), listener.files()
    refused(listener, before, one(listener, encoded(dataset), dataset.SOPInstanceUID, MR, context_class=CT), 0x0122)


PRIVATE = "1.2.826.0.1.3680043.99.1"


def test_unknown_sop_class_is_not_negotiated(listener, caplog):
    caplog.set_level("INFO")
    with associated(listener.port, (PRIVATE, EXPLICIT)) as association:
        assert not association.accepted_contexts
    (told,) = [record for record in caplog.records if record.getMessage().startswith("DCM-324")]
    assert told.levelname == "WARNING"
    assert PRIVATE in told.getMessage()
    assert "RECLAIM_DICOM_SOP_CLASSES" in told.getMessage()


def test_what_is_refused_beside_something_accepted_is_told_as_well(listener, caplog):
    caplog.set_level("INFO")
    contexts = [(f"{PRIVATE}.{number}", EXPLICIT) for number in range(8)]
    with associated(
        listener.port, (MR, EXPLICIT), (CT, "1.2.840.10008.1.2.4.94"), (SC, "1.2.840.10008.1.2.4.94"), *contexts
    ) as one:
        assert len(one.accepted_contexts) == 1
    with associated(listener.port, (MR, EXPLICIT)):
        pass
    (told,) = [record for record in caplog.records if record.getMessage().startswith("DCM-324")]
    assert told.levelname == "INFO"
    assert "and 3 more" in told.getMessage()
    assert f"transfer syntax of SOP class {CT}, {SC}" in told.getMessage()


def test_a_proposed_class_cannot_forge_a_log_line(listener, caplog):
    caplog.set_level("INFO")
    forged = b"1.2.3\n12:00:00 ERROR forged"
    request = association_request(("1.2.826.9999999999999999999999", EXPLICIT)).replace(
        b"1.2.826." + b"9" * 22, forged.ljust(30, b"9")
    )
    with connect(listener.port) as connection:
        connection.sendall(request)
        assert receive_pdu(connection)[0] == ACCEPT
    (told,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("DCM-324")]
    assert "(no UID)" in told
    assert "\n" not in told


def test_store_on_a_context_never_accepted_ends_the_association(listener, tmp_path):
    dataset, before = make("no-context", tmp_path), listener.files()
    with associated(listener.port, (MR, EXPLICIT)) as association:
        assert store(association, encoded(dataset), dataset.SOPInstanceUID, context=99) is None
    assert listener.files() == before


def test_aborted_in_the_middle_leaves_nothing(listener, tmp_path):
    dataset, before = make("aborted", tmp_path), listener.files()
    with associated(listener.port, max_pdu=4096) as association:
        message = C_STORE_RQ()
        message.primitive_to_message(request_of(encoded(dataset) * 50, dataset.SOPInstanceUID))
        for part, _ in zip(message.encode_msg(1, 512), range(4), strict=False):
            association.dul.send_pdu(part)
        time.sleep(0.1)
        association.abort()
    assert listener.files() == before
    assert listener.temporary() == []
    assert listener.instance(dataset.SOPInstanceUID) is None


def test_a_defect_of_ours_is_answered_0110(listener, tmp_path, monkeypatch, caplog):
    dataset, before = make("defect", tmp_path), listener.files()

    def broken(*_):
        raise RuntimeError(str(dataset.PatientID))

    monkeypatch.setattr(reception, "read_facts", broken)
    refused(listener, before, one(listener, encoded(dataset), dataset.SOPInstanceUID), 0x0110)
    assert "DCM-902 RuntimeError at test_dicom_refusals.py" in caplog.text
    monkeypatch.undo()
    assert one(listener, encoded(dataset), dataset.SOPInstanceUID).Status == 0


def test_an_operation_whose_handler_fails_is_answered_0110(listener, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("SECRET")

    monkeypatch.setattr(messages, "_operation", broken)
    push_model = "1.2.840.10008.1.20.1"
    with accepted(listener.port, (push_model, EXPLICIT)) as connection:
        connection.sendall(p_data(1, 3, command(0x0130, sop_class=push_model)) + p_data(1, 2, b""))
        assert status_in(receive_pdu(connection)[1]) == 0x0110
    assert "DCM-904" in caplog.text
    assert "SECRET" not in caplog.text
