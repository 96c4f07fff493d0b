"""Statistical conventions that evaluation and gate share."""

from typing import Final

POWER: Final = 0.8
"""Chance with which what is sought shall show, wherever a number of cases is stated."""
LEVEL: Final = 0.05
"""One-sided level behind a stated number of cases of the evaluation."""
CALIBRATION_BINS: Final = 10
"""Bins of equal width of the expected calibration error (Guo et al. 2017)."""
