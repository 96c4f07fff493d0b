"""How to train, and what one epoch was: the settings and records of `models.training`."""

from typing import Literal, TypeAlias

from pydantic import Field

from models.augmentation import AugmentationSettings
from models.sampling import Balance
from models.spec import Spec

StopReason: TypeAlias = Literal["epochs", "patience", "request"]
TrainingPrecision: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]


class TrainingSettings(Spec):
    """How to train. What keeps old cases from being forgotten has its own weight each, zero for none (`models.forgetting`)."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(32, ge=2, description="Examples behind each step of the optimiser, over all processes")
    accumulation: int = Field(1, ge=1, description="Parts that a batch is computed in, where it does not fit the memory whole")
    head_learning_rate: float = Field(2e-3, gt=0)
    body_learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_share: float = Field(0.1, ge=0, lt=1, description="Share of all steps in which the learning rates rise")
    plateau_patience: int = Field(2, ge=1, description="Epochs without a better validation before the rates are halved")
    balance: Balance = "sampler"
    focal_gamma: float = Field(0.0, ge=0, le=10, description="Focus on hard cases (Lin et al. 2017); zero is cross-entropy")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    monitor: Literal["loss", "macro_recall"] = "loss"
    patience: int = Field(5, ge=1, description="Stop after this many epochs without a better validation")
    valid_first: int = Field(
        0,
        ge=0,
        description="The first so many validation studies count as much as all others together; 0: all alike",
    )
    unfreezing: Literal["none", "gradual"] = Field("none", description="gradual: head first, the last block of the body joins next")
    rank: int = Field(8, ge=1, le=256, description="Rank of the added matrices where only those train")
    rehearsal_share: float = Field(0.5, ge=0, lt=1, description="Share of each batch drawn from old cases, where there are any")
    l2sp: float = Field(0.0, ge=0, description="Pull towards the starting weights (Li et al. 2018)")
    ewc: float = Field(0.0, ge=0, description="The same, by each weight's importance for old cases (Kirkpatrick et al. 2017)")
    distillation: float = Field(0.0, ge=0, description="Weight of the starting network's answers on old cases (Li & Hoiem 2016)")
    average: float = Field(0.0, ge=0, lt=1, description="Decay of the moving average of the weights that is validated and kept")
    augmentation: AugmentationSettings | None = Field(None, description="None: what suits the model's modality")
    device: str = "auto"
    devices: int = Field(1, ge=1, description="GPUs, or processes on a CPU, that share each batch (`models.launch`)")
    precision: TrainingPrecision = Field("auto", description="auto: mixed precision on a GPU, float32 elsewhere")
    channels_last: bool | None = Field(None, description="Memory layout; None: channels last on a GPU")
    compare_start: bool = Field(False, description="Let the starting weights compete as epoch 0")
    seed: int = Field(0, ge=0)


class EpochRecord(Spec):
    """Numbers of one epoch. Epoch 0 is the model before any training."""

    epoch: int
    train_loss: float | None
    valid_loss: float = Field(description="Negative log likelihood, mean over classes of the mean over their studies")
    accuracy: float
    macro_recall: float = Field(description="Over the classes that the validation set has")
    seconds: float


def merit(record: EpochRecord, settings: TrainingSettings) -> tuple[float, float]:
    """Larger is better; the loss breaks ties of the recall."""
    return (-record.valid_loss, 0.0) if settings.monitor == "loss" else (record.macro_recall, -record.valid_loss)
