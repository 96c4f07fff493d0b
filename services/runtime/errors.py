"""The two families of error that decide a message's route; everything else stops the consumer loudly."""


class InvalidInput(Exception):  # noqa: N818 - named for what the input is, not for the mechanism
    """The input can never be processed: it goes to the dead letters with this reason and is not retried."""

    @property
    def reason(self) -> str:
        """One sentence for the dead letter; must not carry a patient's identity."""
        return str(self) or self.__class__.__doc__ or "invalid input"


class Transient(Exception):  # noqa: N818 - named for what the fault is, not for the mechanism
    """A fault outside us that may pass (database away, broker away): the whole batch is tried again after a delay."""
