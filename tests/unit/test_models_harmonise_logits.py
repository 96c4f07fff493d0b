"""What a kind of images has of its own behind the body: a change of the last layer, and logits that leave no class behind."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from models.bundle import LoadedModel, load_bundle, network_of, save_bundle
from models.data import TensorSet
from models.harmonisation import harmoniser_of, set_head
from models.heads import with_classes
from models.kind_calibration import fitted, spread, studies_of
from models.kind_head import FEWEST, head_of_kind, logits_and_features, merged
from models.logits import StudyLogits, balanced_loss, class_recalls, folds_of, study_logits
from models.look import FORM, LOOK
from models.predictor import Predictor
from models.spec import Calibration, Harmonisation, ImageKind, ModelSpec, PreprocessingSpec

CPU = torch.device("cpu")
CLASSES = ("a", "b", "c")
BRIGHT = ImageKind(direction=(*(0.0,) * 6, 1.0, *(0.0,) * (LOOK - 7)), intercept=-0.7, head=3)
"""Images whose middle shade is above 0.7."""
SPEC = ModelSpec(name="m", task="m", classes=CLASSES, options={"width": 8}, preprocessing=PreprocessingSpec(size=(24, 24)))


def told(spec: ModelSpec, kinds: tuple[ImageKind, ...] = (BRIGHT,)) -> ModelSpec:
    return spec.model_copy(update={"harmonisation": Harmonisation(form=FORM, kinds=kinds)})


def pictures(count: int = 6) -> torch.Tensor:
    """Half of them dark, half bright, as a network takes them."""
    shades = torch.rand(count, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.2
    shades[count // 2 :] += 0.8
    return (shades - 0.5) / 0.25


def changed(network: nn.Module, kind: int, seed: int = 0) -> None:
    harmoniser = harmoniser_of(network)
    assert harmoniser is not None
    set_head(harmoniser, kind, np.random.default_rng(seed).normal(size=tuple(harmoniser.get_buffer(f"head_{kind}").shape)))


def outputs(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network.eval()(images)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """A network, and the same with a last layer of its own for bright images."""
    plain, network = network_of(SPEC).eval(), network_of(told(SPEC)).eval()
    network.load_state_dict(plain.state_dict(), strict=False)
    changed(network, 0)
    return plain, network


def test_the_last_layer_changes_for_its_kind_alone(pair) -> None:
    plain, network = pair
    before, after = outputs(plain, pictures()), outputs(network, pictures())
    assert torch.equal(after[:3], before[:3]), "known images keep every bit"
    seen = []
    hook = plain.get_submodule("head").register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    outputs(plain, pictures())
    hook.remove()
    change = harmoniser_of(network).get_buffer("head_0")
    assert torch.allclose(after[3:], before[3:] + seen[0][3:] @ change[:, :-1].T + change[:, -1], atol=1e-5)


def test_a_bundle_keeps_it_and_a_copy_has_its_own(pair, tmp_path) -> None:
    network = pair[1]
    loaded = load_bundle(save_bundle(tmp_path / "1", told(SPEC), network).folder)
    assert torch.equal(outputs(loaded.module, pictures()), outputs(network, pictures()))
    assert "a change of the last layer" in (tmp_path / "1" / "docs/README.md").read_text()
    twin, before = copy.deepcopy(network), outputs(network, pictures())
    changed(twin, 0, seed=1)
    assert torch.equal(outputs(network, pictures()), before)
    assert not torch.allclose(outputs(twin, pictures())[3:], before[3:])


def test_a_class_more_is_left_out_of_it(pair) -> None:
    network = pair[1]
    grown, module = with_classes(told(SPEC), network, ["d"])
    fresh = network_of(grown)
    fresh.load_state_dict(module.state_dict())
    found = outputs(module, pictures())
    assert torch.allclose(found[:, :3], outputs(network, pictures()), atol=1e-5)
    assert torch.equal(outputs(fresh, pictures()), found)


def test_half_precision_reads_it_too(pair) -> None:
    model = LoadedModel(told(SPEC), pair[1], CPU, None)
    exact, quick = (Predictor(model, "cpu", precision).predict(list(pictures()[:, None])) for precision in ("float32", "bfloat16"))
    for one, other in zip(exact, quick, strict=True):
        assert one == pytest.approx(other, abs=0.05)


def test_it_cannot_be_for_more_classes_than_there_are() -> None:
    with pytest.raises(ValidationError, match="last layer"):
        ModelSpec.model_validate(told(SPEC, (BRIGHT.model_copy(update={"head": 4}),)).model_dump())


def blobs(count: int, seed: int, images: int = 1) -> tuple[StudyLogits, np.ndarray]:
    """Studies whose features tell the class, with logits that know the first two of five features only."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    study = np.repeat(np.arange(count), images)
    centres = np.array([[2, 0, 0, 2, 0], [0, 0, 2, 0, 2], [0, 0, 0, 0, 0]], dtype=float)
    features = centres[labels[study]] + random.normal(size=(count * images, 5))
    return StudyLogits(np.column_stack([features[:, 0], features[:, 1], 0.5 * np.ones(len(study))]), study, labels), features


@pytest.mark.parametrize("images", [1, 3])
def test_what_the_last_layer_overlooks_is_learnt(images: int) -> None:
    (cases, features), (unseen, other) = blobs(240, 0, images), blobs(600, 1, images)
    found = head_of_kind(cases, features, 0, np.arange(240))
    assert found.change is not None
    assert found.change.shape == (3, 6)
    better = replace(unseen, logits=unseen.logits + found.moved(other))
    loss = balanced_loss(better.probabilities(), better.labels)
    assert loss < 0.8 * balanced_loss(unseen.probabilities(), unseen.labels)
    assert loss == pytest.approx(found.loss, abs=0.1), "what cross-validation promises holds on other cases"


def test_features_that_tell_nothing_and_few_cases_change_nothing() -> None:
    random = np.random.default_rng(0)
    logits, noise = 2 * random.normal(size=(240, 3)), random.normal(size=(240, 5))
    cases = StudyLogits(logits, np.arange(240), (logits + random.gumbel(size=logits.shape)).argmax(axis=1))
    assert head_of_kind(cases, noise, 0, np.arange(240)).change is None
    cases, features = blobs(240, 2)
    few = StudyLogits(cases.logits[: FEWEST - 1], cases.study[: FEWEST - 1], cases.labels[: FEWEST - 1])
    assert head_of_kind(few, features[: FEWEST - 1], 0, np.arange(FEWEST - 1)).change is None


def test_a_patient_who_came_several_times_proves_nothing() -> None:
    """Else what is known of one study would seem to hold for unseen ones: here the features are each patient's own noise."""
    random, patients = np.random.default_rng(0), np.repeat(np.arange(60), 3)
    labels = random.integers(0, 2, 60)[patients]
    features = random.normal(size=(60, 64))[patients] + 0.1 * random.normal(size=(180, 64))
    cases = StudyLogits(0.1 * random.normal(size=(180, 2)), np.arange(180), labels)
    assert head_of_kind(cases, features, 0, np.arange(180)).loss < 0.5
    found = head_of_kind(cases, features, 0, patients)
    assert found.change is None or found.loss > 0.95 * balanced_loss(cases.probabilities(), labels)
    assert fitted(cases, Calibration(), 0, patients)[1] <= balanced_loss(cases.probabilities(), labels)
    folds = folds_of(patients, 5, 0)
    assert all(len(set(folds[patients == patient])) == 1 for patient in range(60))
    assert (folds_of(np.arange(60), 5, 0) == np.random.default_rng(0).permutation(60) % 5).all(), "as before for one study each"


def test_features_are_what_the_last_layer_takes(pair) -> None:
    names = tuple(map(str, range(6)))
    tensors = TensorSet(tuple(pictures()[:, None]), (0,) * 6, names, names)
    logits, features = logits_and_features(pair[0], tensors, CPU)
    layer = pair[0].get_submodule("head")
    assert np.allclose(logits.logits, features @ layer.weight.detach().numpy().T + layer.bias.detach().numpy(), atol=1e-5)
    assert np.array_equal(study_logits(pair[0], tensors, CPU).logits, logits.logits)


@pytest.mark.parametrize("images", [1, 3])
def test_what_was_seen_of_some_studies_and_of_the_rest_is_put_in_order(images: int) -> None:
    cases, features = blobs(60, 4, images)
    chosen = np.random.default_rng(0).random(60) < 0.4
    parts = [(studies_of(cases, each), features[each[cases.study]]) for each in (chosen, ~chosen)]
    found, seen = merged(chosen, *parts)
    assert np.array_equal(seen, features)
    assert all(np.array_equal(getattr(found, name), getattr(cases, name)) for name in ("logits", "study", "labels"))


def moved_cases(push: float, count: int = 600, apart: float = 2.5) -> StudyLogits:
    """Two classes that are told apart well, and a boundary that lies off by `push` nats."""
    random = np.random.default_rng(3)
    labels = np.arange(count) % 2
    logits = random.normal(size=count) + apart * (labels - 0.5)
    return StudyLogits(np.column_stack([np.zeros(count), logits + push]), np.arange(count), labels)


def recalls_after(cases: StudyLogits, moves: tuple[float, ...]) -> dict[int, float]:
    return class_recalls(replace(cases, logits=cases.logits + np.asarray(moves)).probabilities(), cases.labels)


def test_a_class_that_would_fall_below_its_usual_recall_is_spared() -> None:
    cases = moved_cases(1.5)
    usual = {0: 0.88, 1: 0.88}
    assert recalls_after(cases, (0.0, 0.0))[0] < 0.5
    found = recalls_after(cases, spread(cases, usual, {0: 0.99, 1: 0.1}))
    assert abs(found[0] - found[1]) < 0.06


def test_what_all_classes_lack_is_shared_where_the_champion_called_everything_one_class() -> None:
    """Nobody reads these cases as well as usual: each class lacks as much, none is kept at the cost of the other."""
    cases = moved_cases(0.0, apart=1.5)
    usual = {0: 0.95, 1: 0.95}
    found = recalls_after(cases, spread(cases, usual, {0: 1.0, 1: 0.0}))
    assert min(found.values()) > 0.7
    assert abs(found[0] - found[1]) < 0.06


def test_a_class_that_the_champion_reads_badly_needs_no_more_than_that() -> None:
    cases = moved_cases(1.0)
    free = recalls_after(cases, spread(cases, {0: 0.95, 1: 0.95}, {0: 0.2, 1: 0.2}))
    asked = recalls_after(cases, spread(cases, {0: 0.95, 1: 0.5}, {0: 0.94, 1: 0.2}))
    assert asked[0] > free[0]
    assert asked[0] > 0.9


@settings(deadline=None, max_examples=15)
@given(st.floats(-2, 2), st.floats(0.5, 1.0), st.floats(0.5, 1.0))
def test_moving_costs_no_more_than_it_must(push: float, first: float, second: float) -> None:
    cases = moved_cases(push, 200)
    moves = spread(cases, {0: first, 1: second}, {0: 1.0, 1: 0.0})
    assert sum(moves) == pytest.approx(0, abs=1e-9)
    assert max(map(abs, moves)) < 5


def test_without_known_recalls_nothing_moves() -> None:
    assert spread(moved_cases(1.0), {}, {0: 0.5, 1: 0.5}) == (0.0, 0.0)
    assert Calibration(offsets=spread(moved_cases(1.0), {}, {0: 0.5})).offsets == (0.0, 0.0)
