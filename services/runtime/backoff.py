"""How long to wait before the next attempt."""

import random

BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 30.0


def backoff(failures: int) -> float:
    """Seconds to wait after that many failures in a row: doubling up to 30 s, ±25 % so that processes do not march in step."""
    delay: float = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures, 16))
    return delay * random.uniform(0.75, 1.25)  # noqa: S311 - jitter needs no secrecy
