"""An archive with a reception whose clock the test moves: files have the clock's times, as retention expects."""

import os
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file
from sqlmodel import select

from listeners.dicom.reception import Reception, StoreRequest
from schemas.settings import RetentionSettings
from schemas.tables import Instance, Study
from schemas.vocabulary import StudyState
from services.assembly import retention
from services.assembly.completion import complete_studies
from services.assembly.files import ArchiveFiles
from services.assembly.index import ArchiveIndex
from services.assembly.rules import Rules

DAYS = RetentionSettings(pixel_days=30)


class Archive:
    """An archive with a reception, whose clock the test moves."""

    def __init__(self, context):
        self.context, self.clock, self.root = context, context.clock, context.settings.archive_dir
        self.files = ArchiveFiles(self.root)
        index = ArchiveIndex(context.database, context.pseudonyms)
        self.reception = Reception(self.files, index, context.clock, 0)
        self._dated = {}

    def image(self, study, number=1, sop=None):
        file = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
        file.StudyInstanceUID, file.SeriesInstanceUID = f"1.2.3.{study}", f"1.2.3.{study}.1"
        file.SOPInstanceUID = sop or f"1.2.3.{study}.1.{number}"
        stream = BytesIO()
        file.save_as(stream)
        offset = 144 + pydicom.dcmread(BytesIO(stream.getvalue())).file_meta.FileMetaInformationGroupLength
        syntax, sop_class = str(file.file_meta.TransferSyntaxUID), str(file.SOPClassUID)
        return StoreRequest(sop_class, sop_class, str(file.SOPInstanceUID), syntax, stream.getvalue()[offset:], "MR1")

    def receive(self, study, number=1, sop=None):
        answer = self.reception.receive(self.image(study, number, sop))
        assert answer.status == 0, answer
        self.date(study)
        return answer.message_id

    def date(self, study):
        """Give the study's files the clock's time, as if they had been written, or had come again, now."""
        for path in filter(Path.exists, self.paths(study)):
            if path.stat().st_mtime != self._dated.get(path):  # just written, or just touched
                self._dated[path] = int(self.clock.now().timestamp())
                os.utime(path, (self._dated[path],) * 2)

    def settle(self, *studies, scored=True):
        """Complete studies as the assembly would, and have them scored."""
        self.clock.advance(60)
        with self.context.database.transaction() as tx:
            complete_studies(tx, self.context.pseudonyms, Rules.from_settings(self.context.settings.dicom))
        with self.context.database.transaction() as tx:
            for study in studies:
                row = tx.session.get(Study, f"1.2.3.{study}")
                assert row.state == StudyState.COMPLETE
                if scored:
                    tx.claim("inference", [f"{row.study_key}:{row.revision}"])

    def key(self, study):
        return self.context.pseudonyms.study(f"1.2.3.{study}")

    def tick(self, settings=DAYS):
        with self.context.database.transaction() as tx:
            retention.run(tx, self.root, settings)

    def paths(self, study):
        with self.context.database.read() as session:
            return [self.root / row.path for row in session.exec(select(Instance).where(Instance.study_uid == f"1.2.3.{study}"))]

    def present(self, study):
        return [path.exists() for path in self.paths(study)]

    def on_disk(self):
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*.dcm"))

    def rows(self, table):
        with self.context.database.read() as session:
            return session.exec(select(table)).all()
