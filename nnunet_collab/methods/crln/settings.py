"""Settings of CRLN. Values that the paper does not give are marked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nnunet_collab.core.settings import COUNT, refuse_unused, require, setting
from nnunet_collab.methods.crln.interaction import Aggregation
from nnunet_collab.methods.crln.rectifier import Space
from nnunet_collab.training.ema_trainer import TeacherSettings
from nnunet_collab.training.mixing import MixingSettings
from nnunet_collab.training.settings import CNN, StudentSettings


class CRLNSettings(MixingSettings, TeacherSettings):
    """Settings for all rows of the paper's tables."""

    students: tuple[StudentSettings, ...] = (CNN,)
    cutmix_probability: float = 1.0
    deploy: Literal["student", "teacher"] = setting(
        "teacher", source="not in the paper; as in ReCo, on which CPS is based"
    )
    prototypes: int = setting(
        16,
        "R, prototypes per class. Figure 10 favors 16 to 32; the paper does not state the final value.",
        source="figure 10",
        **COUNT,
    )
    aggregation: Aggregation = setting("shared", "How DIM aggregates: SA, CI, CR.", source="table 6")
    rectification: Literal["none", "fixed", "concatenation", "learnable"] = setting(
        "learnable", "How pseudo labels are rectified: not at all, or v1, v2, v3.", source="table 7"
    )
    rectification_space: Space = setting(
        "logit", "Space in which `learnable` rectifies; see methods.crln.rectifier.", source="equation 8"
    )
    rectify_from_iteration: int = setting(
        800, "S, iterations before pseudo labels are rectified.", unit="iterations", ge=0, lt=2**31, source="figure 12"
    )
    tau: float = setting(
        0.97,
        "Lowest confidence of a pseudo label that is used. Below it, a voxel is uncertain.",
        gt=0,
        lt=1,
        source="not in the paper; ReCo's",
    )
    tau_weak: float = setting(
        0.7,
        "Pseudo labels with a lower confidence are not used as anchor, negative or mean. Less than tau.",
        ge=0,
        lt=1,
        source="not in the paper; ReCo's",
    )
    soft_target: bool = setting(False, "Whether the pseudo label is the whole distribution instead of one class.")
    relations_weight: float = setting(
        1.0, "Weight of l_s(M(x_l), y), relative to nnU-Net's loss of the student.", ge=0, source="equation 15"
    )
    unlabeled_weight: float = setting(1.0, "Weight of the loss on unlabeled images.", ge=0, source="equation 15")
    # The row of table 5 without DIM is `none` here and in `rectification`: nothing needs DIM then, so it is neither
    # built nor trained.
    positives: Literal["none", "mean", "learned", "both"] = setting(
        "both", "Positives of the contrast: no CPS, MR, LP, CPS.", source="table 5"
    )
    contrast_weight: float = setting(
        1.0,
        "Weight of the contrast. It follows ramp_up, like all weights of unlabeled images.",
        ge=0,
        source="equation 15",
    )
    xi: Annotated[float, Field(ge=0)] | Literal["uniform"] = setting(
        0.6,
        "Weight of the learned prototypes. uniform: drawn from [0, 1) in each step, as in equation 13.",
        source="figure 13",
    )
    temperature: float = setting(0.5, "Temperature of the contrast.", gt=0, source="section 4.2")
    anchors: int = setting(256, "Anchors of the contrast.", source="section 4.2", **COUNT)
    negatives: int = setting(512, "Negatives of the contrast.", source="section 4.2", **COUNT)
    context_crop: float = setting(
        1.0,
        "Central part of an unlabeled patch that the student sees; the teacher sees the whole patch. Rounded to "
        "sizes that the network accepts. Section 4.4.1 names a center crop without its size, section 3.1 none.",
        unit="share of each side",
        gt=0,
        le=1,
        source="not in the paper",
    )
    noise: float = setting(
        0.2,
        "The strong view has uniform noise in [-noise, noise]. Intensities have a standard deviation of about 1.",
        ge=0,
        source="not in the paper",
    )
    mu_lr: float = setting(1e-3, "Learning rate of mu, for Adam.", gt=0, source="not in the paper")

    def __post_init__(self) -> None:
        """Check what settings say together.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        require(len(self.students) == 1, "students", "must be one", [s.name for s in self.students])
        require(self.tau_weak < self.tau, "tau_weak", f"must be in [0, tau), where tau is {self.tau}", self.tau_weak)

        idle = {
            "none": ("rectification_space", "mu_lr"),
            "fixed": ("rectification_space", "mu_lr"),
            "concatenation": ("rectification_space",),
        }
        refuse_unused(self, idle.get(self.rectification, ()), f"with rectification {self.rectification!r}")

    @property
    def contrasts(self) -> bool:
        """Whether there is positive supervision."""
        return self.positives != "none" and self.contrast_weight > 0

    @property
    def interacts(self) -> bool:
        """Whether anything needs DIM: the rectification, or the learned prototypes of a positive."""
        return self.rectification != "none" or (self.contrasts and self.positives != "mean")
