"""Anyone's own images: a folder with one .npz, or with one sub-folder per class (PNG, JPEG or DICOM).

The .npz holds `images` uint8 [N, H, W], `labels` integer [N], `class_names`, and optionally `split` (train/test) and
`patient`. A second folder may hold the same task after a real change; without one the change of scanner is simulated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from listeners.demo.cohort import Development, LabelledImage, Sizes
from listeners.demo.scanner_change import change_scanner
from models.pixels import read_frames

Split = dict[str, list[LabelledImage]]


class UnusableFolder(Exception):  # noqa: N818
    """The folder does not hold a labelled image set."""


@dataclass(frozen=True)
class LabelledSet:
    """A loaded folder: class names and images, with the published split of each where there is one."""

    classes: tuple[str, ...]
    items: Sequence[LabelledImage]
    splits: Sequence[str]


class FolderSource:
    """A labelled folder as a source. Patients are kept together; 30 % of the test part is the baseline."""

    body_part = ""

    def __init__(self, folder: Path, shifted: Path | None, modality: str, seed: int = 0, train_limit: int = 1600) -> None:
        loaded = load(folder)
        self.name, self.modality, self.task = folder.name, modality, folder.name.replace("_", "-")
        self.classes: Sequence[str] = loaded.classes
        self._seed, self._train_limit = seed, train_limit
        self._parts = _split(loaded, np.random.default_rng(seed))
        self._foreign = _renamed(load(shifted), loaded.classes, shifted) if shifted else None
        self.note = f"Real images; {_describe(loaded.classes, shifted)}."
        unseen = len(self._parts["stream"])
        stable = unseen if self._foreign else unseen // 3
        self.sizes = Sizes().within(stable, len(self._foreign.items) if self._foreign else unseen - stable)

    def development(self) -> Development:
        """Images that make and baseline the first version."""
        train = self._parts["train"][: self._train_limit]
        return Development(train, self._parts["valid"], self._parts["test"])

    def stable(self) -> Iterator[LabelledImage]:
        """Images that neither trained nor are the baseline; ends when there are no more."""
        unseen = self._parts["stream"]
        yield from unseen if self._foreign else unseen[: len(unseen) // 3]

    def shifted(self) -> Iterator[LabelledImage]:
        """The second folder's images in random order, or the rest of the first after a simulated change."""
        generator = np.random.default_rng([self._seed, 1])
        if self._foreign:
            order = generator.permutation(len(self._foreign.items))
            yield from (self._foreign.items[index] for index in order)
            return
        for item in self._parts["stream"][len(self._parts["stream"]) // 3 :]:
            yield LabelledImage(change_scanner(item.image, generator), item.label, item.patient)


def _describe(classes: Sequence[str], shifted: Path | None) -> str:
    change = f"real shift to {shifted.name}" if shifted else "the change of scanner is simulated"
    return f"classes {', '.join(classes)}; {change}"


def _renamed(foreign: LabelledSet, classes: tuple[str, ...], folder: Path) -> LabelledSet:
    """The second set under the first one's class names, matched by order where the names differ."""
    if len(foreign.classes) != len(classes):
        raise UnusableFolder(f"{folder} has the classes {', '.join(foreign.classes)}; expected as many as {', '.join(classes)}")
    names = (
        {name: name for name in classes}
        if set(foreign.classes) == set(classes)
        else dict(zip(foreign.classes, classes, strict=True))
    )
    items = [LabelledImage(item.image, names[item.label], item.patient) for item in foreign.items]
    return LabelledSet(classes, items, foreign.splits)


def load(folder: Path) -> LabelledSet:
    """Read a labelled folder; UnusableFolder says what is missing."""
    if not folder.is_dir():
        raise UnusableFolder(f"{folder} is not a folder")
    archives = sorted(folder.glob("*.npz"))
    if len(archives) > 1:
        raise UnusableFolder(f"{folder} holds {len(archives)} .npz files, expected one")
    return _load_npz(archives[0]) if archives else _load_class_folders(folder)


def _load_npz(path: Path) -> LabelledSet:
    with np.load(path, allow_pickle=False) as data:
        missing = {"images", "labels", "class_names"} - set(data.files)
        if missing:
            raise UnusableFolder(f"{path.name} lacks {', '.join(sorted(missing))}")
        images, labels, classes = data["images"], data["labels"], tuple(str(name) for name in data["class_names"])
        count = len(images)
        patients = data["patient"] if "patient" in data.files else np.arange(count)
        splits = data["split"] if "split" in data.files else np.full(count, "")
    items = [LabelledImage(images[i], classes[int(labels[i])], f"{path.stem}-{splits[i]}-{patients[i]}") for i in range(count)]
    return LabelledSet(classes, items, [str(split) for split in splits])


def _load_class_folders(folder: Path) -> LabelledSet:
    classes = tuple(sorted(child.name for child in folder.iterdir() if child.is_dir()))
    if len(classes) < 2:
        raise UnusableFolder(f"{folder} holds neither an .npz file nor at least two class folders")
    files = [(name, path) for name in classes for path in sorted((folder / name).iterdir()) if path.is_file()]
    items = [LabelledImage(_read_image(path), name, f"{name}-{path.stem}") for name, path in files]
    return LabelledSet(classes, items, [""] * len(items))


def _read_image(path: Path) -> npt.NDArray[np.uint8]:
    if path.suffix.lower() in {".png", ".jpg", ".jpeg"}:
        return np.asarray(Pillow.open(path).convert("L"), dtype=np.uint8)
    frame = read_frames(path).display[0]
    return np.asarray(frame * 255, dtype=np.uint8)


def _split(loaded: LabelledSet, generator: np.random.Generator) -> Split:
    """Published test images, or those of 45 % of the patients, are never trained on: baseline and stable stream."""
    patients = sorted({item.patient for item in loaded.items})
    draw = dict(zip(patients, generator.permutation(len(patients)) / len(patients), strict=True))
    parts: Split = {"train": [], "valid": [], "test": [], "stream": []}
    published = "test" in loaded.splits
    for index in generator.permutation(len(loaded.items)):
        item, place = loaded.items[index], draw[loaded.items[index].patient]
        held_out = loaded.splits[index] == "test" if published else place >= 0.55
        early = place < 0.4 if published or not held_out else place < 0.75
        parts[_part(held_out=held_out, early=early, place=place)].append(item)
    return parts


def _part(*, held_out: bool, early: bool, place: float) -> str:
    if held_out:
        return "test" if early else "stream"
    return "valid" if place < 0.1 else "train"
