"""The conformance statement lists what the listener accepts and answers, no more and no less."""

import re
from pathlib import Path

from listeners.dicom.storage_classes import CURRENT, RETIRED

TEXT = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


def test_every_storage_class_is_listed_with_its_name():
    annex = TEXT.partition("## Annex A")[2]
    listed = {uid: name for name, uid in re.findall(r"^\| (.+) \| (1\.2\.840\.10008\.[0-9.]+) \|$", annex, re.MULTILINE)}
    assert listed == CURRENT | {uid: f"{name} *" for uid, name in RETIRED.items()}
