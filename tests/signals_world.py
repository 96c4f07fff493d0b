"""A modality for the tests: slices, what it says of them (MPPS, storage commitment), and the port where it awaits its report."""

import time

import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from services.assembly.reporter import PUSH_MODEL
from services.runtime.scu import Peer, open_association

CT = "1.2.840.10008.5.1.4.1.1.2"


def until(look, what, seconds=15.0):
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def dataset(**elements):
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def images(count):
    """Slices of a new study."""
    study, found = generate_uid(), []
    for _ in range(count):
        image = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        image.StudyInstanceUID, image.SeriesInstanceUID = study, f"{study[:60]}.1"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        found.append(image)
    return study, found


def reference(image):
    return dataset(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID)


def begun(study):
    return dataset(PerformedProcedureStepStatus="IN PROGRESS", ScheduledStepAttributesSequence=[dataset(StudyInstanceUID=study)])


def ended(found, status="COMPLETED"):
    series = dataset(ReferencedImageSequence=[reference(image) for image in found])
    return dataset(PerformedProcedureStepStatus=status, PerformedSeriesSequence=[series])


def associated(port, *contexts, title="CT1"):
    """An association with our listener; a context is (abstract syntax, transfer syntaxes)."""
    listener = Peer("reclaim", "RECLAIM", "127.0.0.1", port)
    return open_association(listener, [build_context(*context) for context in contexts], calling_ae=title)


class Scanner:
    """What waits at the modality for the report."""

    def __init__(self, port):
        self.reports = []
        ae = AE("CT1")
        ae.add_supported_context(PUSH_MODEL, scu_role=False, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._take)]
        self._server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)

    def _take(self, event):
        self.reports.append((event.event_type, event.event_information))
        return 0x0000, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()


def asked(found, transaction):
    return dataset(TransactionUID=transaction, ReferencedSOPSequence=[reference(image) for image in found])
