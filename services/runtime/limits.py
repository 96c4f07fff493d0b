"""Dead-letter limits: a consumer that rejects almost everything is broken, and must not empty its topic into the dead letters."""

from collections import deque

from schemas.settings import DeadLetterSettings

WINDOW = 1000
"""Messages that the ratio looks back on."""


class DeadLetterLimit:
    """Counts handled and rejected messages of one consumer."""

    def __init__(self, settings: DeadLetterSettings) -> None:
        self._settings = settings
        self._consecutive = 0
        self._window: deque[bool] = deque(maxlen=WINDOW)

    def exceeded_by(self, handled: int, rejected: int) -> str:
        """Count a batch; the reason to stop, or an empty string.

        The order inside a batch is not known: a batch with any good message ends the run of rejected ones.
        """
        self._consecutive = self._consecutive + rejected if rejected >= handled else 0
        self._window.extend([True] * rejected + [False] * max(0, handled - rejected))
        if self._consecutive >= self._settings.max_consecutive:
            return f"{self._consecutive} messages in a row were rejected (limit {self._settings.max_consecutive})"
        share = sum(self._window) / WINDOW
        if len(self._window) == WINDOW and share > self._settings.max_ratio:
            return f"{share:.0%} of the last {WINDOW} messages were rejected (limit {self._settings.max_ratio:.0%})"
        return ""
