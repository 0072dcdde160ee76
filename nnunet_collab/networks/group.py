"""All students of a run as one module: one forward, one DistributedDataParallel wrapper, one state dict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from nnunet_collab.core.types import StudentOutput
from nnunet_collab.networks.ensemble import mean_probability
from nnunet_collab.networks.perturbation import OnlyTeaching, PerturbedPass
from nnunet_collab.networks.student import Student


class StudentGroup(nn.Module):
    """The students that train together on the same batch.

    Args:
        students: Students with distinct names.
    """

    def __init__(self, students: Iterable[Student]) -> None:
        super().__init__()
        self.students = nn.ModuleDict({student.name: student for student in students})

    def forward(
        self, image: Tensor, perturbed_passes: Sequence[PerturbedPass] = (), only_teaching: OnlyTeaching | None = None
    ) -> dict[str, StudentOutput]:
        """Every student's output on `(B, C_in, *S)`, by name; for the other arguments see `Student.forward`."""
        return {name: student(image, perturbed_passes, only_teaching) for name, student in self.students.items()}

    def __iter__(self) -> Iterator[Student]:
        return (self[name] for name in self.students)

    def __getitem__(self, name: str) -> Student:
        return self.students[name]  # type: ignore[return-value]


class StudentEnsemble(StudentGroup):
    """The same students, for prediction: logits whose softmax (or sigmoid) is the mean of the students' probabilities.

    nnU-Net averages logits over mirrored and overlapping windows, so its result is the mean of the students in each
    window; `nnUNetv2_ensemble` averages whole predictions instead. Both agree closely, but not bit for bit.

    Args:
        students: Students with distinct names.
        regions: True if the channels are overlapping regions (sigmoid), False for exclusive classes (softmax).
    """

    def __init__(self, students: Iterable[Student], *, regions: bool) -> None:
        super().__init__(students)
        self.regions = regions

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """Logits `(B, C, *S)` of the mean probability of the students."""
        logits = torch.stack([student(image).logits.float() for student in self.students.values()])
        return mean_probability(logits, regions=self.regions)
