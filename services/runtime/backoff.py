"""How long to wait before the next attempt."""

import random

BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 30.0


def backoff(failures: int) -> float:
    """Seconds to wait after that many failures in a row: doubling up to 30 s, ±25 % so that processes do not march in step."""
    return doubled(failures, BACKOFF_FIRST_S, BACKOFF_MAX_S) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter needs no secrecy


def doubled(failures: int, first_s: float, longest_s: float) -> float:
    """Seconds to wait after that many earlier failures, 0 the first time: doubling from `first_s` to `longest_s`."""
    return float(min(longest_s, first_s * 2 ** min(failures, 32)))
