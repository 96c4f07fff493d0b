"""What can go wrong in the machine learning. Reasons are safe for logs: they never quote a value read from a file's header."""


class ModelError(Exception):
    """Base of all errors of this package; `reason` is one line for a person."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnreadableImage(ModelError):  # noqa: N818 - named for what is wrong, not for the mechanism
    """The file holds no pixels that can be decoded as DICOM says. Never retried, never replaced by a black image."""


class UnsuitableStudy(ModelError):  # noqa: N818 - named for what is wrong, not for the mechanism
    """The study's images can be read, but they are not what this model takes."""


class NotSelected(UnsuitableStudy):
    """No image of the study is one that the model is meant for; nothing is wrong with the study."""


class BrokenBundle(ModelError):  # noqa: N818 - named for what is wrong, not for the mechanism
    """The model bundle on disk is incomplete, altered or not a bundle."""


class InvalidDataset(ModelError):  # noqa: N818 - named for what is wrong, not for the mechanism
    """The labelled data set breaks its contract; the reason names row and column."""


class UnknownNetwork(ModelError):  # noqa: N818 - named for what is wrong, not for the mechanism
    """No network of that name; the reason names the nearest one."""


class TrainingFailed(ModelError):  # noqa: N818 - named for what is wrong, not for the mechanism
    """Training cannot go on, e.g. the loss is not finite or a class has no case."""


class UnusableCheckpoint(TrainingFailed):
    """The checkpoint found is damaged or of another run: other data, other settings, or another version of this software."""
