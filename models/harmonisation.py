"""A network that reads images of a new kind in their own way, and all others exactly as before.

Each image is told by its look (`models.look`). One of a new kind has its grey levels brought to those the network was made
with (histogram standardisation: Nyúl, Udupa 1999; Nyúl, Udupa, Zhang 2000), passes BatchNorm layers with the statistics of
its kind (domain-specific batch normalisation: Chang et al. 2019), has the last layer changed and its logits corrected. All
other weights are shared.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.adaptation import Statistics, batch_norms
from models.errors import BrokenBundle
from models.heads import last_linear
from models.look import FORM, LOOK, look_of
from models.networks import build_network
from models.spec import Calibration, GreyLevels, Harmonisation, PreprocessingSpec

ATTRIBUTE: Final = "harmonisation"
"""The submodule of a harmonised network that holds what it knows of the kinds."""
_LEVELS: Final = 4096


class Harmoniser(nn.Module):
    """What a network does by the kind of each image. It is no layer of its own: its methods are hooks of the network.

    State: by BatchNorm layer L, counted in the order of their names, `scale_L` and `shift_L` [kinds + 1, channels] that bring
    the layer's inputs of a kind to the mean and variance of the known images, which the layer then normalises; the last row
    is theirs and changes nothing. By kind K with a change of the last layer `head_K` [classes, features + 1], the last column
    an offset. All else is the specification's.
    """

    def __init__(
        self, spec: Harmonisation, preprocessing: PreprocessingSpec, layers: Mapping[str, _BatchNorm], features: int = 0
    ) -> None:
        super().__init__()
        if spec.form != FORM or any(len(kind.direction) != LOOK for kind in spec.kinds):
            raise BrokenBundle(f"the kinds of images are told by looks of form {spec.form}, not {FORM}")
        self.spec, self._mean, self._std = spec, preprocessing.mean, preprocessing.std
        self.kinds: torch.Tensor | None = None
        tables = [_table(kind.grey_levels) for kind in spec.kinds]
        self._own_levels, self._own_logits = (
            any(kind.grey_levels is not None for kind in spec.kinds),
            any(kind.calibration != Calibration() for kind in spec.kinds),
        )
        constants = {
            "directions": torch.tensor([kind.direction for kind in spec.kinds], dtype=torch.float64),
            "intercepts": torch.tensor([kind.intercept for kind in spec.kinds], dtype=torch.float64),
            "tables": torch.stack(tables) if self._own_levels else torch.zeros(0),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)
        if any(kind.statistics for kind in spec.kinds):
            for place, layer in enumerate(layers.values()):
                shape = (len(spec.kinds) + 1, layer.num_features)
                self.register_buffer(f"scale_{place}", torch.ones(shape))
                self.register_buffer(f"shift_{place}", torch.zeros(shape))
        self._heads = [number for number, kind in enumerate(spec.kinds) if kind.head]
        for number in self._heads:
            self.register_buffer(f"head_{number}", torch.zeros(spec.kinds[number].head, features + 1))

    def kinds_of(self, images: torch.Tensor) -> torch.Tensor:
        """The kind of each image [n, C, (D,) H, W] as the network takes it: its place in the specification, -1 for the known."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            looks = look_of(images[:, :1].float() * self._std + self._mean)
            best, places = (looks @ self.get_buffer("directions").T + self.get_buffer("intercepts")).max(dim=1)
            return torch.where(best > 0, places, -1)

    def take(self, _network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before the network: tell the images, and change the grey levels of those of new kinds."""
        images: torch.Tensor = inputs[0]
        kinds = self.kinds_of(images)
        self.kinds = kinds if bool((kinds >= 0).any()) else None
        if self.kinds is None or not self._own_levels:
            return None
        rows = (self.kinds >= 0).nonzero()[:, 0]
        if len(rows) == len(images):
            return (self.standardised(images, self.kinds), *inputs[1:])
        changed = images.clone()
        changed[rows] = self.standardised(images[rows], self.kinds[rows])
        return (changed, *inputs[1:])

    def standardised(self, images: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Images as the network takes them with the grey levels of their kinds [n], to a four-thousandth of a shade."""
        places = ((images.float() * self._std + self._mean).clamp(0, 1) * (_LEVELS - 1) + 0.5).int()
        places += (kinds * _LEVELS).int().view(-1, *(1 for _ in images.shape[1:]))
        shades = self.get_buffer("tables").flatten()[places]
        return ((shades - self._mean) / self._std).to(images.dtype)

    def give(self, _network: nn.Module, _inputs: tuple[Any, ...], logits: torch.Tensor) -> torch.Tensor | None:
        """After the network: correct the logits of images of new kinds."""
        kinds, self.kinds = self.kinds, None
        if kinds is None or not self._own_logits:
            return None
        corrected = logits.clone()
        for number, kind in enumerate(self.spec.kinds):
            rows = (kinds == number).nonzero()[:, 0]
            if len(rows):
                corrected[rows] = _calibrated(logits[rows], kind.calibration)
        return corrected

    def changed(self, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor | None:
        """After the last layer: its change for images of new kinds."""
        if self.kinds is None or not self._heads:
            return None
        changed = logits.clone()
        for number in self._heads:
            rows = (self.kinds == number).nonzero()[:, 0]
            if len(rows):
                change = self.get_buffer(f"head_{number}")
                with torch.autocast(logits.device.type, enabled=False):
                    more = nn.functional.linear(features[rows].to(change.dtype), change[:, :-1], change[:, -1])
                changed[rows, : len(change)] += more.to(logits.dtype)
        return changed

    def shifted(self, place: int, layer: _BatchNorm, given: torch.Tensor) -> torch.Tensor | None:
        """Before a BatchNorm layer that rests: bring images of new kinds to the statistics of the known ones."""
        if self.kinds is None or layer.training:
            return None
        # An index of -1 takes the last row: known images are multiplied by one, which changes no bit of them.
        shape = (*given.shape[:2], *(1 for _ in given.shape[2:]))
        scale, shift = (self.get_buffer(f"{name}_{place}")[self.kinds].view(shape) for name in ("scale", "shift"))
        return torch.addcmul(shift, given.to(scale.dtype), scale).to(given.dtype)


class _Shift:
    """A BatchNorm layer's hook; an object, so that a copy of the network has hooks of its own."""

    def __init__(self, harmoniser: Harmoniser, place: int) -> None:
        self._harmoniser, self._place = harmoniser, place

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> torch.Tensor | None:
        assert isinstance(layer, _BatchNorm)
        return self._harmoniser.shifted(self._place, layer, inputs[0])


class _Change:
    """The last layer's hook."""

    def __init__(self, harmoniser: Harmoniser) -> None:
        self._harmoniser = harmoniser

    def __call__(self, _layer: nn.Module, inputs: tuple[Any, ...], logits: torch.Tensor) -> torch.Tensor | None:
        return self._harmoniser.changed(inputs[0], logits)


def harmonise(module: nn.Module, spec: Harmonisation, preprocessing: PreprocessingSpec) -> Harmoniser:
    """Have a plain network tell kinds of images from now on, in place.

    Raises BrokenBundle for looks of another form, UnknownNetwork for a change of a last layer that is not linear.
    """
    layers = batch_norms(module)
    last = last_linear(module) if any(kind.head for kind in spec.kinds) else None
    harmoniser = Harmoniser(spec, preprocessing, layers, last.in_features if last is not None else 0)
    module.add_module(ATTRIBUTE, harmoniser)
    module.register_forward_pre_hook(harmoniser.take)
    module.register_forward_hook(harmoniser.give)
    if last is not None:
        last.register_forward_hook(_Change(harmoniser))
    if any(kind.statistics for kind in spec.kinds):
        for place, layer in enumerate(layers.values()):
            layer.register_forward_pre_hook(_Shift(harmoniser, place))
    return harmoniser


def build_harmonised(
    name: str, classes: int, harmonisation: Mapping[str, Any], mean: float, std: float, **rest: float | str | bool
) -> nn.Module:
    """A network by name (`models.networks.build_network`) that tells kinds of images: the form in which MONAI builds it."""
    network = build_network(name, classes, **rest)  # type: ignore[arg-type]
    harmonise(network, Harmonisation.model_validate(harmonisation), PreprocessingSpec(mean=mean, std=std))
    return network


def harmoniser_of(module: nn.Module) -> Harmoniser | None:
    """What a network does by kinds of images, None where it reads all alike."""
    found = getattr(module, ATTRIBUTE, None)
    return found if isinstance(found, Harmoniser) else None


def set_statistics(harmoniser: Harmoniser, kind: int, statistics: Statistics, layers: Mapping[str, _BatchNorm]) -> None:
    """Keep BatchNorm statistics as those of one kind of images; `layers` are the network's own, with those of the known images."""
    for place, (name, layer) in enumerate(layers.items()):
        mean, variance = (each.double() for each in statistics.layers[name])
        assert layer.running_mean is not None
        assert layer.running_var is not None
        known, spread = layer.running_mean.double().cpu(), layer.running_var.double().cpu()
        scale = ((spread + layer.eps) / (variance + layer.eps)).sqrt()
        for what, value in (("scale", scale), ("shift", known - mean * scale)):
            buffer = harmoniser.get_buffer(f"{what}_{place}")
            buffer[kind] = value.to(buffer)


def set_head(harmoniser: Harmoniser, kind: int, change: np.typing.NDArray[np.float64]) -> None:
    """Keep a change [classes, features + 1] of the last layer as that of one kind of images."""
    buffer = harmoniser.get_buffer(f"head_{kind}")
    buffer[:] = torch.from_numpy(change).to(buffer)


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


def _table(levels: GreyLevels | None) -> torch.Tensor:
    """What each of `_LEVELS` shades from 0 to 1 becomes: looking it up takes an eighth of the time of finding its line."""
    given = torch.linspace(0, 1, _LEVELS, dtype=torch.float64)
    return (given if levels is None else mapped(given, levels)).float()
