"""A PACS for the tests: Orthanc, as Debian packages it, in a folder of its own, driven over its REST interface."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from listeners.dicom.synthesize import StudyFacts, write_image
from tests.conftest import START

ORTHANC = shutil.which("Orthanc") or shutil.which("orthanc")


def port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Orthanc:
    """A running Orthanc with AE title PACS. `knows` maps AE titles that it may send to (C-MOVE, C-STORE) to their ports."""

    def __init__(self, folder: Path, knows: dict[str, int] | None = None, **options: Any) -> None:
        if ORTHANC is None:
            pytest.skip("NOT TESTED against a PACS: no Orthanc on PATH (Debian package: orthanc)")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port, self._http = folder, port(), port()
        self._config = folder / "orthanc.json"
        known = {title.lower(): [title, "127.0.0.1", number] for title, number in (knows or {}).items()}
        settings = {
            "Name": "pacs",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [],
            "DicomAet": "PACS",
            "DicomPort": self.port,
            "HttpPort": self._http,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "DicomModalities": known,
            "OverwriteInstances": True,
            "DicomThreadsCount": 1,
            "HttpThreadsCount": 2,
        }
        self._config.write_text(json.dumps(settings | options))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Orthanc":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([str(ORTHANC), str(self._config)], stdout=log, stderr=log, cwd=self.folder)
        for _ in range(300):
            try:
                self.get("/system")
            except OSError:
                time.sleep(0.1)
            else:
                return
        pytest.fail(f"Orthanc did not start:\n{(self.folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}{path}", timeout=20) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: bytes) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self._http}{path}", body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def upload(self, *files: Path) -> None:
        for file in files:
            self.post("/instances", file.read_bytes())

    def uids(self) -> set[str]:
        """SOP Instance UIDs of everything it holds."""
        return {self.get(f"/instances/{each}/simplified-tags")["SOPInstanceUID"] for each in self.get("/instances")}

    def file(self, sop_instance_uid: str) -> bytes:
        (found,) = self.post("/tools/lookup", sop_instance_uid.encode())
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}/instances/{found['ID']}/file", timeout=20) as answer:
            return answer.read()

    def send_to(self, title: str, sop_instance_uid: str) -> None:
        """Auto-routing: have it store one of its objects to a known AE."""
        (found,) = self.post("/tools/lookup", sop_instance_uid.encode())
        self.post(f"/modalities/{title.lower()}/store", found["ID"].encode())


def make_study(
    folder: Path,
    seed: str,
    *,
    count: int = 2,
    modality: str = "CT",
    patient_id: str = "PAT-1",
    name: str = "Meier^Anna",
    **facts: Any,
) -> list[Path]:
    """Write a study; its patient is Anna Meier."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{seed}-{number}.dcm"
        image = np.random.default_rng(number).integers(0, 4000, (32, 32), dtype=np.uint16)
        shown = {"acquired_at": START, "instance": number + 1, "body_part": "HEAD"} | facts
        write_image(path, image, StudyFacts(modality, patient_id, seed, **shown))
        dataset = dcmread(path)
        dataset.PatientName = "Meier^Anna"
        dataset.save_as(path)
        paths.append(path)
    return paths
