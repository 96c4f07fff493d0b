"""New classes are learnt by new rows alone, so that what is known of the old ones stays."""

import numpy as np
import torch

from models.bundle import load_bundle, network_of, save_bundle
from models.data import TensorSet
from models.extension import learn_classes
from models.spec import ModelSpec, PreprocessingSpec
from models.training import TrainingSettings, train

SPEC = ModelSpec(
    name="m",
    task="t",
    classes=("left", "right"),
    options={"width": 8},
    preprocessing=PreprocessingSpec(size=(16, 16)),
    modality="MR",
)
QUICK = TrainingSettings(epochs=12, batch_size=16, head_learning_rate=1e-2, body_learning_rate=1e-2, device="cpu", patience=12)


def dataset(count: int, classes: int, seed: int) -> TensorSet:
    """Images that are bright on the left, on the right, or below."""
    random, places = np.random.default_rng(seed), [(..., slice(0, 8)), (..., slice(8, 16)), (..., slice(8, 16), slice(None))]
    studies = []
    for index in range(count):
        image = random.normal(0, 0.3, (1, 1, 16, 16))
        image[places[index % classes]] += 1.5
        studies.append(torch.tensor(image, dtype=torch.float32))
    names = tuple(f"{seed}-{index}" for index in range(count))
    return TensorSet(tuple(studies), tuple(index % classes for index in range(count)), names, names)


def test_old_logits_stay_whatever_the_new_class_learns(tmp_path):
    module, heard = network_of(SPEC), []
    train(module, SPEC, dataset(64, 2, 1), dataset(16, 2, 2), QUICK)
    save_bundle(tmp_path / "bundle", SPEC, module)
    champion, images = load_bundle(tmp_path / "bundle"), torch.cat(dataset(30, 3, 5).studies)
    settings = QUICK.model_copy(update={"epochs": 100, "head_learning_rate": 2e-2, "patience": 100})
    made = learn_classes(champion, ("below",), dataset(90, 3, 3), dataset(30, 3, 4), settings, heard.append)
    with torch.inference_mode():
        before, after = champion.module(images), made.module(images)
    torch.testing.assert_close(after[:, :2], before, rtol=1e-5, atol=1e-6)
    still = {name: tensor for name, tensor in champion.module.state_dict().items() if not name.startswith("head")}
    assert all(torch.equal(tensor, made.module.state_dict()[name]) for name, tensor in still.items()), "statistics rest too"
    assert made.spec.classes == ("left", "right", "below")
    assert [record.epoch for record in heard] == list(range(1, 101))
    right = after.argmax(1) == torch.tensor([index % 3 for index in range(30)])
    assert float(right[2::3].float().mean()) >= 0.9, "the new class is learnt"
    assert float(right.float().mean()) >= 0.9
    assert all(parameter.requires_grad for parameter in made.module.parameters())
