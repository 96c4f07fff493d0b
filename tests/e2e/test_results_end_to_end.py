"""From the modality to the PACS and back: studies over C-STORE, results in Orthanc, and what it routes back changes nothing."""

import json
import random
import time
from io import BytesIO

from pydicom import dcmread
from sqlmodel import select

from schemas.tables import Instance, Outbox, Study
from schemas.topics import PREDICTION
from schemas.vocabulary import CaseRole
from services.runtime.result_uids import is_result_uid
from tests.loop_samples import NAME, samples
from tests.loop_world import send_all, wait_for
from tests.pacs_world import Orthanc, port

REPORT, IMAGE = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.7"


def test_results_reach_the_pacs_once_and_come_back_without_effect(make_loop, storescu, tmp_path):
    number = port()
    peers = {"pacs": {"ae_title": "PACS", "host": "127.0.0.1", "port": number}}
    settings = {
        "RECLAIM_DICOM_PEERS": json.dumps(peers),
        "RECLAIM_RESULTS_DESTINATION": "pacs",
        "RECLAIM_RESULTS_FIRST_DELAY_S": "1",
        "RECLAIM_RESULTS_LONGEST_DELAY_S": "2",
    }
    loop = make_loop(**settings).start()
    chosen = samples(tmp_path / "studies", {CaseRole.TRIGGER: 4}, truthful=True)
    send_all(loop, chosen[:2])
    with Orthanc(tmp_path / "pacs", {"RECLAIM": loop.dicom_port}, DicomPort=number) as pacs:
        wait_for("the results of before the PACS was there", 90, lambda: len(pacs.uids()) == 4)
        loop.kill("upkeep")
        send_all(loop, chosen[2:])
        uids = wait_for("all results", 90, lambda: len(pacs.uids()) == 8 and pacs.uids())
        made = [dcmread(BytesIO(pacs.file(uid))) for uid in uids]
        assert sorted(str(each.SOPClassUID) for each in made) == sorted([REPORT, IMAGE] * 4)
        assert {str(each.PatientName) for each in made} == {NAME}
        before = _studies(loop)
        for uid in sorted(uids, key=lambda _: random.random()):
            pacs.send_to("RECLAIM", uid)
        wait_for("the results' rows", 60, lambda: _results(loop) == uids)
        time.sleep(3)  # six quiet periods: a reopened study would have been announced
        assert _studies(loop) == before
        assert _predictions(loop) == 4
    assert loop.stop() == 0


def _studies(loop):
    with loop.context.database.read() as session:
        return {row.study_key: (row.state, row.revision, row.instances) for row in session.exec(select(Study))}


def _results(loop):
    with loop.context.database.read() as session:
        return {uid for uid in session.exec(select(Instance.sop_instance_uid)) if is_result_uid(uid)}


def _predictions(loop):
    with loop.context.database.read() as session:
        return len(session.exec(select(Outbox.id).where(Outbox.topic == PREDICTION.name)).all())
