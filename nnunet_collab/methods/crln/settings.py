"""Settings of CRLN; what the paper leaves open is marked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nnunet_collab.core.settings import refuse_unused, require
from nnunet_collab.methods.crln.interaction import Aggregation
from nnunet_collab.methods.crln.rectifier import Space
from nnunet_collab.training.ema_trainer import TeacherSettings
from nnunet_collab.training.mixing import MixingSettings
from nnunet_collab.training.settings import CNN, StudentSettings


@dataclass(frozen=True)
class CRLNSettings(MixingSettings, TeacherSettings):
    """Every switch of the paper's tables; [I]: not given there, see the comment."""

    students: tuple[StudentSettings, ...] = (CNN,)
    cutmix_probability: float = 1.0
    deploy: Literal["student", "teacher"] = "teacher"  # [I] as ReCo, from which CPS descends
    prototypes: int = 16  # R per class; figure 10 prefers it to 32, the final value is nowhere stated
    aggregation: Aggregation = "shared"  # table 6: SA + CI + CR
    rectification: Literal["none", "fixed", "concatenation", "learnable"] = "learnable"  # table 7: v1, v2, v3
    rectification_space: Space = "logit"  # of equation 8 (`learnable` alone), see networks.rectifier
    rectify_from_iteration: int = 800  # S, iterations before pseudo labels are rectified (figure 12)
    # [I] ReCo's: confidence from which on a pseudo label is used, and below which a voxel is uncertain
    tau: float = 0.97
    tau_weak: float = 0.7  # [I] ReCo's: confidence below which a pseudo label is no anchor, negative or mean
    soft_target: bool = False  # True: the whole distribution is the pseudo label
    relations_weight: float = 1.0  # equation 15: of l_s(M(x_l), y), relative to nnU-Net's loss of the student
    unlabeled_weight: float = 1.0  # equation 15
    # Table 5: no CPS, MR, LP, CPS. Its row without DIM is `none` here and in `rectification`: DIM, which nothing needs
    # then, is neither built nor trained.
    positives: Literal["none", "mean", "learned", "both"] = "both"
    contrast_weight: float = 1.0  # equation 15; follows `ramp_up`, as all weights of unlabeled images do
    # Weight of the learned prototypes (figure 13). "uniform": in [0, 1), drawn for each step, as equation 13 has it.
    xi: float | Literal["uniform"] = 0.6
    temperature: float = 0.5
    anchors: int = 256
    negatives: int = 512
    # [I] share of each side of an unlabeled patch that the student sees, in its middle, while the teacher sees all of
    # it. Section 4.4.1 names a center crop without its size, section 3.1 none. Rounded to sizes the network takes.
    context_crop: float = 1.0
    noise: float = 0.2  # [I] the strong view's uniform noise is in +-noise; intensities have a deviation of about 1
    mu_lr: float = 1e-3  # [I] Adam

    def __post_init__(self) -> None:
        """Check what a type cannot say.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        require(len(self.students) == 1, "students", "must be one", [s.name for s in self.students])
        for name in ("prototypes", "anchors", "negatives"):
            require(getattr(self, name) >= 1, name, "must be >= 1", getattr(self, name))
        require(0 < self.tau < 1, "tau", "must be in (0, 1)", self.tau)
        require(0 <= self.tau_weak < self.tau, "tau_weak", f"must be in [0, tau), tau is {self.tau}", self.tau_weak)
        require(isinstance(self.xi, str) or self.xi >= 0, "xi", "must be >= 0 or 'uniform'", self.xi)
        for name in ("rectify_from_iteration", "relations_weight", "unlabeled_weight", "contrast_weight", "noise"):
            require(getattr(self, name) >= 0, name, "must be >= 0", getattr(self, name))
        require(0 < self.context_crop <= 1, "context_crop", "must be a share, in (0, 1]", self.context_crop)
        for name in ("temperature", "mu_lr"):
            require(getattr(self, name) > 0, name, "must be > 0", getattr(self, name))

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
