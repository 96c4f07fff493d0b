"""Learning rates over a run, as factors on each group's peak: pure functions of the step and of the epochs so far."""

import math
from collections.abc import Sequence

from models.training_settings import EpochRecord, TrainingSettings, merit


def rate_factor(settings: TrainingSettings, step: int, steps: int, history: Sequence[EpochRecord]) -> float:
    """Linear warm-up over `warmup_share` of all `steps`, then what the schedule says."""
    warm = int(settings.warmup_share * steps)
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))
    return 1.0 if settings.schedule == "constant" else 0.5 ** halvings(history, settings)


def halvings(history: Sequence[EpochRecord], settings: TrainingSettings) -> int:
    """How often the rates have been halved: once for every `plateau_patience` epochs in a row without a better validation."""
    count = waited = 0
    best: tuple[float, float] | None = None
    for record in history:
        if best is None or merit(record, settings) > best:
            best, waited = merit(record, settings), 0
            continue
        waited += 1
        if waited == settings.plateau_patience:
            count, waited = count + 1, 0
    return count


def open_blocks(epoch: int, epochs: int, blocks: int) -> int:
    """Blocks of the body, counted from its end, that train in an epoch of a gradual unfreezing.

    None in the first epoch, one more step by step, all of them from the middle of the run on (Howard & Ruder 2018).
    """
    rise = max(1, epochs // 2)
    return min(blocks, math.ceil(blocks * (epoch - 1) / rise))
