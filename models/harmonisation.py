"""A network that reads images of a new kind in their own way, and all others exactly as before.

Each image is told by its look (`models.look`). One of a new kind has its grey levels brought to those the network was made
with (histogram standardisation: Nyúl, Udupa 1999; Nyúl, Udupa, Zhang 2000), passes BatchNorm layers with the statistics of
its kind (domain-specific batch normalisation: Chang et al. 2019), and has its logits corrected. All weights are shared.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from models.adaptation import Statistics, batch_norms
from models.errors import BrokenBundle
from models.look import FORM, LOOK, look_of
from models.spec import Calibration, GreyLevels, Harmonisation, ImageKind, PreprocessingSpec

ATTRIBUTE: Final = "harmonisation"
"""The submodule of a harmonised network that holds what it knows of the kinds."""


class Harmoniser(nn.Module):
    """What a network does by the kind of each image. It is no layer of its own: its methods are hooks of the network.

    State: BatchNorm statistics by layer, `mean_L` and `variance_L` [kinds, channels], L counting the network's BatchNorm layers
    in the order of their names' appearance. All else is the specification's.
    """

    def __init__(self, spec: Harmonisation, preprocessing: PreprocessingSpec, layers: Mapping[str, _BatchNorm]) -> None:
        super().__init__()
        if spec.form != FORM or any(len(kind.direction) != LOOK for kind in spec.kinds):
            raise BrokenBundle(f"the kinds of images are told by looks of form {spec.form}, not {FORM}")
        self.spec, self._mean, self._std = spec, preprocessing.mean, preprocessing.std
        self.kinds: torch.Tensor | None = None
        self.register_buffer("directions", _rows([kind.direction for kind in spec.kinds]), persistent=False)
        self.register_buffer("intercepts", _rows([kind.intercept for kind in spec.kinds]), persistent=False)
        if any(kind.statistics for kind in spec.kinds):
            for place, layer in enumerate(layers.values()):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                shape = (len(spec.kinds), 1)
                self.register_buffer(f"mean_{place}", layer.running_mean.detach().repeat(shape).clone())
                self.register_buffer(f"variance_{place}", layer.running_var.detach().repeat(shape).clone())

    def kinds_of(self, images: torch.Tensor) -> torch.Tensor:
        """The kind of each image [n, C, (D,) H, W] as the network takes it: its place in the specification, -1 for the known."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            looks = look_of(images.float() * self._std + self._mean)
            scores = looks @ self.get_buffer("directions").to(looks).T + self.get_buffer("intercepts").to(looks)
            best, places = scores.max(dim=1)
            return torch.where(best > 0, places, -1)

    def take(self, _network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before the network: tell the images, and change the grey levels of those of new kinds."""
        images: torch.Tensor = inputs[0]
        self.kinds = self.kinds_of(images)
        if not bool((self.kinds >= 0).any()):
            self.kinds = None
            return None
        changed = images.clone()
        for kind, rows in self._rows_of_kinds():
            if kind.grey_levels is not None:
                changed[rows] = self.standardised(images[rows], kind.grey_levels)
        return (changed, *inputs[1:])

    def standardised(self, images: torch.Tensor, levels: GreyLevels) -> torch.Tensor:
        """Images as the network takes them, with other grey levels."""
        shades = mapped(images.float() * self._std + self._mean, levels)
        return ((shades - self._mean) / self._std).to(images.dtype)

    def give(self, _network: nn.Module, _inputs: tuple[Any, ...], logits: torch.Tensor) -> torch.Tensor | None:
        """After the network: correct the logits of images of new kinds."""
        if self.kinds is None:
            return None
        corrected = logits.clone()
        for kind, rows in self._rows_of_kinds():
            corrected[rows] = _calibrated(logits[rows], kind.calibration)
        self.kinds = None
        return corrected

    def normalise(self, place: int, layer: _BatchNorm, given: torch.Tensor, known: torch.Tensor) -> torch.Tensor | None:
        """After a BatchNorm layer that rests: normalise images of new kinds by their own statistics."""
        if self.kinds is None or layer.training:
            return None
        own = known.clone()
        means, variances = self.get_buffer(f"mean_{place}"), self.get_buffer(f"variance_{place}")
        for number, (kind, rows) in self._numbered():
            if kind.statistics:
                statistics = means[number], variances[number]
                own[rows] = functional.batch_norm(given[rows], *statistics, layer.weight, layer.bias, False, 0.0, layer.eps).to(own)
        return own

    def _rows_of_kinds(self) -> list[tuple[ImageKind, torch.Tensor]]:
        return [pair for _, pair in self._numbered()]

    def _numbered(self) -> list[tuple[int, tuple[ImageKind, torch.Tensor]]]:
        assert self.kinds is not None
        found = [(number, (kind, (self.kinds == number).nonzero()[:, 0])) for number, kind in enumerate(self.spec.kinds)]
        return [(number, (kind, rows)) for number, (kind, rows) in found if len(rows)]


class _Normalise:
    """A BatchNorm layer's hook; an object, so that a copy of the network has hooks of its own."""

    def __init__(self, harmoniser: Harmoniser, place: int) -> None:
        self._harmoniser, self._place = harmoniser, place

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        assert isinstance(layer, _BatchNorm)
        return self._harmoniser.normalise(self._place, layer, inputs[0], output)


def harmonise(module: nn.Module, spec: Harmonisation, preprocessing: PreprocessingSpec) -> Harmoniser:
    """Have a plain network tell kinds of images from now on, in place. Raises BrokenBundle for looks of another form."""
    layers = batch_norms(module)
    harmoniser = Harmoniser(spec, preprocessing, layers)
    module.add_module(ATTRIBUTE, harmoniser)
    module.register_forward_pre_hook(harmoniser.take)
    module.register_forward_hook(harmoniser.give)
    if any(kind.statistics for kind in spec.kinds):
        for place, layer in enumerate(layers.values()):
            layer.register_forward_hook(_Normalise(harmoniser, place))
    return harmoniser


def harmoniser_of(module: nn.Module) -> Harmoniser | None:
    """What a network does by kinds of images, None where it reads all alike."""
    found = getattr(module, ATTRIBUTE, None)
    return found if isinstance(found, Harmoniser) else None


def set_statistics(harmoniser: Harmoniser, kind: int, statistics: Statistics) -> None:
    """Keep BatchNorm statistics as those of one kind."""
    for place, (mean, variance) in enumerate(statistics.layers.values()):
        for name, value in ((f"mean_{place}", mean), (f"variance_{place}", variance)):
            buffer = harmoniser.get_buffer(name)
            buffer[kind] = value.to(buffer)


def mapped(shades: torch.Tensor, levels: GreyLevels) -> torch.Tensor:
    """Shades of any shape after a change of grey levels; those outside [0, 1] are cut off."""
    given, wanted = (torch.tensor(each, dtype=shades.dtype, device=shades.device) for each in (levels.given, levels.wanted))
    inside = shades.clamp(0, 1)
    upper = torch.searchsorted(given, inside.contiguous()).clamp(1, len(given) - 1)
    low, high = given[upper - 1], given[upper]
    share = (inside - low) / (high - low)
    return torch.lerp(wanted[upper - 1], wanted[upper], share)


def _calibrated(logits: torch.Tensor, calibration: Calibration) -> torch.Tensor:
    """Classes that came later have no offset."""
    changed = logits / calibration.temperature
    if calibration.offsets:
        count = len(calibration.offsets)
        changed[:, :count] += torch.tensor(calibration.offsets, dtype=changed.dtype, device=changed.device)
    return changed


def _rows(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
