"""Settings that every trainer of the package shares."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nnunet_collab.core.schedules import sigmoid_ramp
from nnunet_collab.core.settings import COUNT, Settings, require, setting

LETTERS_AND_DIGITS = r"^[A-Za-z0-9]+$"


class StudentSettings(Settings):
    """One student and how it is trained. The defaults train a CNN as nnU-Net does."""

    name: str = setting(
        description="The student is published as <Trainer>_<name>.",
        pattern=LETTERS_AND_DIGITS,
        rule="a text of letters and digits",
    )
    network: str = setting(
        "plans",
        "The planned network (plans), segformer_b0 to segformer_b5, cmaformer, primus_s, primus_b, primus_m, primus_l, "
        "fpn_mobilenetv2, fpn_resnet50, or the dotted path of any network class.",
    )
    arch: dict[str, Any] = setting(
        factory=dict, description="Keywords of the network's constructor, on top of the planned ones."
    )
    encoder_tap: str = setting(
        "",
        "Layer whose output is the encoder's feature map; with `:input` after its name, what the layer gets. Empty: "
        "the one known for the network.",
    )
    decoder_tap: str = setting(
        "", "Layer whose output is the decoder's feature map. Empty: the one known for the network."
    )
    pretrained: bool | Annotated[str, Field(min_length=1)] = setting(
        False,
        "Start from ImageNet weights, if there are any for the network. Check their licenses. A text is the path of a "
        "file of such weights (.safetensors or of torch), for machines without network.",
        rule="true, false or the path of a file",
    )
    start_from: str = setting(
        "",
        "Fold folder or checkpoint of a model (of this package, of nnU-Net or of nnssl) whose weights the student "
        "starts from. Those that fit by name and shape are taken; at least 80 % of the encoder must fit.",
    )
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "The optimizer.", source="nnU-Net")
    lr: float = setting(1e-2, "Highest learning rate.", gt=0, source="nnU-Net")
    weight_decay: float = setting(3e-5, "Weight decay.", ge=0, source="nnU-Net")
    momentum: float = setting(0.99, "Momentum of sgd.", ge=0, lt=1, source="nnU-Net")
    nesterov: bool = setting(
        True, "Nesterov's momentum for sgd. Other published recipes name plain momentum.", source="nnU-Net"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = setting(
        (0.9, 0.98), "Betas of adamw.", min_length=2, max_length=2, source="nnU-Net's Primus"
    )
    warmup: float = setting(0.0, "Time in which the learning rate rises linearly.", unit="share of the run", ge=0, lt=1)
    poly_power: float = setting(0.9, "Power of the polynomial decay of the learning rate.", gt=0, source="nnU-Net")
    lr_per: Literal["epoch", "iteration"] = setting("epoch", "How often the learning rate is set.", source="nnU-Net")
    grad_clip: float = setting(12.0, "Largest norm of the student's gradient. 0: no clipping.", ge=0, source="nnU-Net")
    frozen: str | tuple[Annotated[str, Field(min_length=1)], ...] = setting(
        "",
        "Fold folder of a published model. The student gets its weights; it teaches and does not learn. Several "
        "folders in a list teach as an ensemble: the mean of their probabilities.",
        rule="a text or a list of texts",
    )

    def __post_init__(self) -> None:
        """Check what settings say together.

        Raises:
            CollabError: Naming the settings that exclude each other, or a folder that is named twice.
        """
        super().__post_init__()
        sources = [name for name in ("frozen", "pretrained", "start_from") if getattr(self, name)]
        rule = f"cannot be combined: the weights of student {self.name!r} have one source"
        require(len(sources) < 2, " and ".join(sources), rule, {name: getattr(self, name) for name in sources})
        rule = f"must name each folder once (student {self.name!r})"
        require(len(set(self.teachers)) == len(self.teachers), "frozen", rule, list(self.teachers))

    @property
    def teachers(self) -> tuple[str, ...]:
        """The folders of the models that a frozen student is; empty for a student that learns."""
        return tuple(filter(None, (self.frozen,))) if isinstance(self.frozen, str) else self.frozen


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


class TrainingSettings(Settings):
    """What every trainer lets its users set. The defaults are nnU-Net's."""

    students: tuple[StudentSettings, ...] = setting(
        (CNN, TRANSFORMER),
        "The networks that are trained. In JSON a list, or an object that changes the default ones by name.",
        min_length=1,
    )
    run_name: str = setting(
        "",
        "Results go to <Trainer>_<run_name>, so that several runs can be kept.",
        pattern=r"^[A-Za-z0-9]*$",
        rule="a text of letters and digits",
    )
    seed: int = setting(0, "Seed of weights, batches and dropout.", ge=0, lt=2**32)
    epochs: int = setting(1000, "Length of the training.", unit="epochs", source="nnU-Net", **COUNT)
    iterations_per_epoch: int = setting(250, "Length of an epoch.", unit="iterations", source="nnU-Net", **COUNT)
    val_iterations_per_epoch: int = setting(
        50, "Validation batches after every epoch.", unit="iterations", source="nnU-Net", **COUNT
    )
    save_every: int = setting(50, "Time between checkpoints to resume from.", unit="epochs", source="nnU-Net", **COUNT)
    batch_size: Annotated[int, Field(**COUNT)] | Literal["with_unlabeled"] | None = setting(
        None,
        "Labeled samples per step. null: as planned. with_unlabeled: nnU-Net's rule with the unlabeled images counted.",
        unit="samples",
    )
    patch_size: tuple[Annotated[int, Field(**COUNT)], ...] | None = setting(
        None, "Size of the patches, one number per axis. null: as planned.", unit="voxels", min_length=2, max_length=3
    )
    deep_supervision: bool = setting(
        True, "Whether the auxiliary outputs of networks that have them are supervised, too.", source="nnU-Net"
    )
    seg_loss: Literal["dc_ce", "ce"] = setting(
        "dc_ce", "Supervised loss: nnU-Net's Dice + cross-entropy, or cross-entropy alone.", source="nnU-Net"
    )
    augmentation: Literal["nnunet", "flips_and_rotations"] = setting(
        "nnunet", "nnU-Net's augmentation, or its flips and rotations alone.", source="nnU-Net"
    )
    publish: tuple[str, ...] = setting((), "Names of the students to validate and publish. null: all that learn.")
    validate_ensemble: bool = setting(
        True, "Whether the validation cases are predicted with the mean of the students, too."
    )
    max_bad_steps: int = setting(
        5, "The run ends after this number of consecutive iterations whose loss or gradient is not finite.",
        unit="iterations", **COUNT,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check what settings say together.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        names = [student.name for student in self.students]
        require(len(set(names)) == len(names), "students", "must have distinct names", names)
        require(any(not s.frozen for s in self.students), "students", "must leave one student to learn", names)
        learners = [s.name for s in self.students if not s.frozen]
        require(
            set(self.publish) <= set(learners), "publish", f"must be among {', '.join(learners)}", list(self.publish)
        )
        # A run without a name publishes its students as <Trainer>_<student>.
        require(self.run_name not in names, "run_name", "must not be a student's name", self.run_name)

    @property
    def start_epoch(self) -> float | None:
        """The epoch from which more than the labels counts, in fractions; None where nothing starts later."""
        return None

    @property
    def published(self) -> list[str]:
        """Names of the students that are validated and published."""
        return list(self.publish) or [s.name for s in self.students if not s.frozen]


class CollaborativeSettings(TrainingSettings):
    """Settings of trainers whose students also learn from each other or from unlabeled images."""

    start: float = setting(
        0.0,
        "When the students start to learn from more than labels: a value below 1 is a share of the run, a value of 1 "
        "or more a number of epochs. Until then the training equals that of SupervisedTrainer bit for bit.",
        unit="share of the run, or epochs",
        ge=0,
    )

    def __post_init__(self) -> None:
        """Check what settings say together.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        share_or_epochs = self.start < 1 or (self.start == int(self.start) and 1 <= self.start < self.epochs)
        rule = f"must be a share of the run in [0, 1), or a whole number of epochs below {self.epochs}"
        require(share_or_epochs, "start", rule, self.start)

    @property
    def iterations(self) -> int:
        """Number of iterations of the whole run."""
        return self.epochs * self.iterations_per_epoch

    @property
    def start_iteration(self) -> int:
        """First iteration in which the students learn from more than labels."""
        return round(self.start * (self.iterations if self.start < 1 else self.iterations_per_epoch))

    @property
    def start_epoch(self) -> float | None:
        """The epoch in which `start_iteration` lies, in fractions."""
        return self.start_iteration / self.iterations_per_epoch

    def ramp(self, iteration: int, share: float, *, steps: int = 0) -> float:
        """Factor of a weight at this iteration: 0 before `start`, then rising; see `schedules.sigmoid_ramp`.

        Args:
            iteration: From 0.
            share: Share of the rest of the run after `start` over which the factor rises; 0: at once.
            steps: If given, it rises in this number of equal steps.
        """
        since = iteration - self.start_iteration
        if since < 0:
            return 0.0
        return sigmoid_ramp(since, round(share * (self.iterations - self.start_iteration)), steps=steps)
