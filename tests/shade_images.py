"""A data set of plain images, dark or light on one side, that a small network learns in seconds."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from listeners.dicom.synthesize import StudyFacts, write_image

CLASSES = ("dark", "light")


def write_shades(folder: Path, counts: Mapping[str, int]) -> list[str]:
    """Write so many images of each split, and `manifest.csv`; its lines."""
    rows, generator = ["path,label,patient,split"], np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(count):
            image = generator.normal(90, 10, (24, 24))
            image[:, :12] += 100 * (number % 2)
            facts = StudyFacts("MR", f"{split}-{number}", f"{split}-{number}", datetime(2026, 3, 2, tzinfo=UTC))
            write_image(folder / f"{split}-{number}.dcm", image.clip(0, 255).astype(np.uint8), facts)
            rows.append(f"{split}-{number}.dcm,{CLASSES[number % 2]},{split}-{number},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return rows
