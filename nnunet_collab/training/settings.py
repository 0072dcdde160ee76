"""Settings that every trainer of the package shares."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from nnunet_collab.core.schedules import sigmoid_ramp
from nnunet_collab.core.settings import require


@dataclass(frozen=True)
class StudentSettings:
    """One student and how it is trained. The defaults train a CNN as nnU-Net does."""

    name: str  # letters and digits; the student is published as <Trainer>_<name>
    network: str = "plans"  # see networks.blueprint
    arch: dict[str, Any] = field(default_factory=dict)  # further keywords of the network's constructor
    encoder_tap: str = ""  # layer whose output is the encoder's feature map; empty: chosen by the network
    decoder_tap: str = ""
    pretrained: bool = False  # ImageNet weights, where there are any; mind their licenses
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-2
    weight_decay: float = 3e-5
    momentum: float = 0.99  # sgd
    nesterov: bool = True  # sgd, as nnU-Net; other published recipes name plain momentum
    betas: tuple[float, ...] = (0.9, 0.98)  # adamw; nnU-Net's values for Primus
    warmup: float = 0.0  # share of the run in which the learning rate rises linearly
    poly_power: float = 0.9  # polynomial decay, nnU-Net and the paper alike
    lr_per: Literal["epoch", "iteration"] = "epoch"  # how often the learning rate is set
    grad_clip: float = 12.0  # largest norm of the student's gradient; 0: no clipping
    frozen: str = ""  # fold folder of a published model: load its weights, teach, do not learn

    def __post_init__(self) -> None:
        """Check what a type cannot say.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        where = f"students.{self.name}."
        require(
            bool(re.fullmatch(r"[A-Za-z0-9]+", self.name)), "students.name", "must be letters and digits", self.name
        )
        require(self.lr > 0, where + "lr", "must be > 0", self.lr)
        require(self.weight_decay >= 0, where + "weight_decay", "must be >= 0", self.weight_decay)
        require(0 <= self.momentum < 1, where + "momentum", "must be in [0, 1)", self.momentum)
        require(len(self.betas) == 2, where + "betas", "must be two numbers", self.betas)
        require(all(0 <= b < 1 for b in self.betas), where + "betas", "must be in [0, 1)", self.betas)
        require(0 <= self.warmup < 1, where + "warmup", "must be a share of the run, in [0, 1)", self.warmup)
        require(self.poly_power > 0, where + "poly_power", "must be > 0", self.poly_power)
        require(self.grad_clip >= 0, where + "grad_clip", "must be >= 0", self.grad_clip)


# A CNN as nnU-Net trains it (nnUNetTrainer.configure_optimizers) and a Transformer as nnU-Net trains Primus
# (primus_trainers.AbstractPrimus: AdamW 3e-4, weight decay 5e-2, warm-up 50 of 1000 epochs, gradient norm 1).
CNN = StudentSettings(name="CNN")
TRANSFORMER = StudentSettings(
    name="Transformer",
    network="segformer_b2",
    optimizer="adamw",
    lr=3e-4,
    weight_decay=5e-2,
    warmup=0.05,
    lr_per="iteration",
    grad_clip=1.0,
)


@dataclass(frozen=True)
class TrainingSettings:
    """What every trainer lets its users set. The defaults are nnU-Net's."""

    students: tuple[StudentSettings, ...] = (CNN, TRANSFORMER)
    run_name: str = ""  # letters and digits; results go to <Trainer>_<run_name>, so that runs can stand side by side
    seed: int = 0  # of weights, batches and dropout
    epochs: int = 1000
    iterations_per_epoch: int = 250
    val_iterations_per_epoch: int = 50
    save_every: int = 50  # epochs between checkpoints to resume from
    # Labeled samples per step. None: as planned; "with_unlabeled": nnU-Net's rule with the unlabeled images counted.
    batch_size: int | Literal["with_unlabeled"] | None = None
    patch_size: tuple[int, ...] | None = None  # None: as planned
    deep_supervision: bool = True  # for networks that have it
    seg_loss: Literal["dc_ce", "ce"] = "dc_ce"  # nnU-Net's Dice + cross-entropy, or cross-entropy alone
    augmentation: Literal["nnunet", "flips_and_rotations"] = "nnunet"
    publish: tuple[str, ...] = ()  # names of the students to validate and publish; none named: all that learn
    validate_ensemble: bool = True  # also predict the validation cases with the mean of the students
    max_bad_steps: int = 5  # so many non-finite steps in a row end the run

    def __post_init__(self) -> None:
        """Check what a type cannot say.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        names = [student.name for student in self.students]
        require(len(names) >= 1, "students", "must name at least one student", names)
        require(len(set(names)) == len(names), "students", "must have distinct names", names)
        require(any(not s.frozen for s in self.students), "students", "must leave one student to learn", names)
        learners = [s.name for s in self.students if not s.frozen]
        require(
            set(self.publish) <= set(learners), "publish", f"must be among {', '.join(learners)}", list(self.publish)
        )
        require(
            bool(re.fullmatch(r"[A-Za-z0-9]*", self.run_name)), "run_name", "must be letters and digits", self.run_name
        )
        # <Trainer>_<student> is where a student of the run without a name is published.
        require(self.run_name not in names, "run_name", "must not be a student's name", self.run_name)
        require(self.seed >= 0, "seed", "must be >= 0", self.seed)
        for name in ("epochs", "iterations_per_epoch", "val_iterations_per_epoch", "save_every", "max_bad_steps"):
            require(getattr(self, name) >= 1, name, "must be >= 1", getattr(self, name))
        size = self.batch_size
        require(not isinstance(size, int) or size >= 1, "batch_size", "must be >= 1", size)
        sizes = self.patch_size or ()
        require(
            self.patch_size is None or (len(sizes) in (2, 3) and min(sizes) >= 1),
            "patch_size",
            "must be two or three sizes >= 1",
            self.patch_size,
        )

    @property
    def published(self) -> list[str]:
        """Names of the students that are validated and published."""
        return list(self.publish) or [s.name for s in self.students if not s.frozen]


@dataclass(frozen=True)
class CollaborativeSettings(TrainingSettings):
    """Of every trainer whose students learn from more than labels: from each other, or from unlabeled images."""

    # When that begins: below 1 a share of the run, from 1 on a number of epochs. Until then the training is that of
    # `SupervisedTrainer`, bit for bit.
    start: float = 0.0

    def __post_init__(self) -> None:
        """Check what a type cannot say.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        share_or_epochs = 0 <= self.start < 1 or (self.start == int(self.start) and 1 <= self.start < self.epochs)
        rule = f"must be a share of the run in [0, 1), or a whole number of epochs below {self.epochs}"
        require(share_or_epochs, "start", rule, self.start)

    @property
    def iterations(self) -> int:
        """Of the whole run."""
        return self.epochs * self.iterations_per_epoch

    @property
    def start_iteration(self) -> int:
        """The first iteration in which more than the labels counts."""
        return round(self.start * (self.iterations if self.start < 1 else self.iterations_per_epoch))

    def ramp(self, iteration: int, share: float, *, steps: int = 0) -> float:
        """Factor of a weight at this iteration: 0 before `start`, then rising; see `schedules.sigmoid_ramp`.

        Args:
            iteration: From 0.
            share: Of what is left of the run after `start`, over which the factor rises; 0: at once.
            steps: If given, it rises in so many equal steps.
        """
        since = iteration - self.start_iteration
        if since < 0:
            return 0.0
        return sigmoid_ramp(since, round(share * (self.iterations - self.start_iteration)), steps=steps)
