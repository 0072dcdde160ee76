"""A dataset with unlabeled images, for self-training with fake commands."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import replace

from studying import Lab, write_json

from nnunet_collab.study import conduct, self_train
from nnunet_collab.study.self_training import SelfTraining

SOURCE = "Dataset001_Toy"
DATASET_JSON = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def stored(trainer, plans, configuration):
    """As `training.inspection.trainer_names`, of nnU-Net's own trainers, and of one of ours."""
    if trainer == "FixMatchTrainer":
        return self_train.Stored(trainer, (f"{trainer}_CNN",), needs_unlabeled=True)
    if trainer == "CTRCLTrainer":
        return self_train.Stored(trainer, (f"{trainer}_CNN", f"{trainer}_Transformer"))
    return self_train.Stored(trainer, (trainer,))


def add_images(lab):
    """Three labeled and two unlabeled images, and two folds."""
    write_json(lab.raw / "dataset.json", DATASET_JSON)
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["a", "c"], "val": ["b"]}]
    write_json(lab.preprocessed / "splits_final.json", folds)
    for folder, cases in (("imagesTr", ("a", "b", "c")), ("imagesUn", ("u", "w"))):
        for case in cases:
            path = lab.raw / folder / f"{case}_0000.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{folder} {case}")
    (lab.raw / "labelsTr").mkdir()
    for case in ("a", "b", "c"):
        (lab.raw / "labelsTr" / f"{case}.nii.gz").write_text(f"label {case}")


class RoundsLab(Lab):
    """The laboratory of studies with labeled and unlabeled images, and a request."""

    def __init__(self, root, monkeypatch):
        super().__init__(root, monkeypatch)
        monkeypatch.delenv("nnUNet_collab_settings", raising=False)
        self.folder = root / "rounds"
        add_images(self)
        self.request = self_train.Request(
            "test", "1", "2d", "nnUNetPlans", (0, 1), "nnUNetTrainer", SelfTraining(to=30)
        )

    def ask(self, folds=None, **options):
        """Change the request."""
        changed = SelfTraining.model_validate({**self.request.options.model_dump(), **options})
        self.request = replace(self.request, options=changed, folds=self.request.folds if folds is None else folds)

    def dice(self, *of_rounds, finish=0.0):
        """Set the validation Dice of round 0, 1, ..."""
        names = [SOURCE, *(f"Dataset{30 + n:03d}_Toy_test_round{n + 1}" for n in range(len(of_rounds) - 1))]
        found = {f"{name} nnUNetPlans": value for name, value in zip(names, of_rounds, strict=True)}
        self.monkeypatch.setenv("FAKE_DICE", json.dumps({**found, f"{SOURCE} nnUNetPlans_test_finish": finish}))

    def check(self):
        return self_train.check_self_train(self.request, self.folder, "cpu", stored)

    def run(self):
        """Do the self-training; its exit status and what it printed."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = self_train.conduct_self_train(self.check())
        return status, out.getvalue()

    def dry(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            work = self.check()
            conduct.print_run(work.study, work.study.runs[0])
        return out.getvalue()

    def outcome(self):
        """Content of every checkpoint, and of every file of the datasets with pseudo labels, by its path."""
        paths = [*self.results.parent.rglob("*final.pth"), *self.results.parent.rglob("summary.json")]
        paths += [p for p in (self.root / "raw").glob("Dataset03*/**/*") if p.is_file()]
        return {path.relative_to(self.root).as_posix(): path.read_text() for path in paths}

    def forget_all(self):
        """As if nothing had been started."""
        self.forget()
        for folder in (self.folder, self.results.parent, *(self.root / "raw").glob("*Dataset03*")):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.root / "preprocessed").glob("Dataset03*"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in self.preprocessed.glob("*finish*"):
            file.unlink()
