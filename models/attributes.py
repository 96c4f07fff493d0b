"""Reading attributes of a DICOM dataset that may hold anything: absent, empty, of another type, or nonsense."""

from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue


def frame_count(dataset: Dataset) -> int:
    """Number of Frames (0028,0008), 1 when absent."""
    return max(int(number_of(dataset, "NumberOfFrames") or 1), 1)


def text_of(dataset: Dataset, keyword: str) -> str:
    """An attribute's text, several values joined by a backslash, empty when absent."""
    return "\\".join(words_of(dataset, keyword)).strip()


def number_of(dataset: Dataset, keyword: str) -> float | None:
    """An attribute's first value as a number, None when absent, empty or not a number."""
    value = dataset.get(keyword)
    try:
        first = value[0] if isinstance(value, list | tuple | MultiValue) else value
        return None if first is None or first == "" else float(first)
    except (TypeError, ValueError, IndexError):
        return None


def functional_group(dataset: Dataset, sequence: str, frame: int) -> Dataset | None:
    """A frame's functional group macro of an enhanced object, its own before the shared one (PS3.3 C.7.6.16); None if absent."""
    own: Any = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared: Any = dataset.get("SharedFunctionalGroupsSequence") or ()
    for groups in (own[frame] if frame < len(own) else None, shared[0] if len(shared) else None):
        macro = groups.get(sequence) if groups is not None else None
        if macro:
            item: Dataset = macro[0]
            return item
    return None


def words_of(dataset: Dataset, keyword: str) -> list[str]:
    """An attribute's values as texts, none when absent."""
    value: Any = dataset.get(keyword)
    if value is None:
        return []
    values = value if isinstance(value, list | tuple | MultiValue) else [value]
    return [str(each) for each in values]
