"""Conventions that evaluation and gate share."""

from typing import Final

POWER: Final = 0.8
"""Chance with which what is sought shall show, wherever a number of cases is stated."""
LEVEL: Final = 0.05
"""One-sided level behind a stated number of cases of the evaluation."""
CALIBRATION_BINS: Final = 10
"""Bins of equal width of the expected calibration error (Guo et al. 2017)."""
GROUP_FACETS: Final = (
    "Manufacturer",
    "ManufacturerModelName",
    "StationName",
    "BodyPartExamined",
    "ViewPosition",
    "ScanningSequence",
    "ConvolutionKernel",
    "PatientSex",
    "AgeBand",
)
"""What groups of cases are made of; view, sequence and kernel are the protocol."""
