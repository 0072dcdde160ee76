"""Common base of the methods with an averaged (EMA) teacher."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import setting
from nnunet_collab.core.types import StudentOutput
from nnunet_collab.networks.group import StudentGroup
from nnunet_collab.networks.teacher import EMATeacher
from nnunet_collab.training.compilation import compile_students
from nnunet_collab.training.semi_supervised import SemiSupervisedTrainer
from nnunet_collab.training.semi_supervised_settings import SemiSupervisedSettings


class TeacherSettings(SemiSupervisedSettings):
    """Settings of every method with a teacher."""

    ema_decay: float = setting(
        0.99, "Decay of the teacher's weights, at most 1 - 1 / t after t updates.", ge=0, lt=1, source="Mean Teacher"
    )
    deploy: Literal["student", "teacher"] = setting(
        "student", "Network that is validated, published and used for prediction."
    )


class TeacherTrainer(SemiSupervisedTrainer):
    """Base of the methods with a teacher: the moving average of every student's weights."""

    settings: ClassVar[TeacherSettings] = TeacherSettings()

    def averages(self, settings: TeacherSettings) -> bool:
        """Whether there is a teacher; a method may make this a setting."""
        return True

    def check(self, settings: TeacherSettings) -> None:  # type: ignore[override]
        """Refuse frozen students: the average of weights that never change is useless."""
        if not self.averages(settings):
            return
        frozen = [s.name for s in settings.students if s.frozen]
        if frozen:
            raise CollabError(
                f"{self.trainer_name}: the teacher is the average of the student it teaches, so every student must "
                f"learn; {', '.join(frozen)} is frozen. Remove 'frozen'."
            )

    def initialize(self) -> None:
        """Build everything, and the teacher from the initial weights of the students."""
        super().initialize()
        self.has_teacher = self.averages(self.settings)
        if not self.has_teacher:
            return
        self.teacher = EMATeacher(self.group, self.settings.ema_decay)
        if self._do_i_compile():  # the copy of a compiled student is not compiled
            compile_students(self.teacher.group, lambda line: self.print_to_log_file(f"teacher of {line}"))

    @property
    def deployed(self) -> StudentGroup:
        """The students or the teacher, as the settings say."""
        return self.teacher.group if self.settings.deploy == "teacher" else self.group

    def after_step(self) -> None:
        """Update the teacher."""
        super().after_step()
        if self.has_teacher:
            self.teacher.update(self.group)

    def method_state(self) -> dict[str, Any]:
        """The teacher."""
        state = super().method_state()
        return {**state, "teacher": self.teacher.state_dict()} if self.has_teacher else state

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore the teacher."""
        super().load_method_state(state)
        if self.has_teacher:
            self.teacher.load_state_dict(state["teacher"])

    def pseudo_labelers(self, image: Tensor, outputs: dict[str, StudentOutput]) -> dict[str, StudentOutput]:
        """The teacher."""
        return outputs if self.settings.deploy == "teacher" or not self.has_teacher else self.teacher(image)
