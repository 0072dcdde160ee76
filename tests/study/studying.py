"""A dataset, fake commands and a study file: what the tests of studies start from."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from nnunet_collab.core.errors import CollabError
from nnunet_collab.study import conduct, execution

FAKE = Path(__file__).with_name("fake_nnunet.py")
COMMANDS = (
    "nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_accumulate_crossval_results", "nnUNetv2_determine_postprocessing",
    "nnUNetv2_apply_postprocessing", "nnUNetv2_preprocess", "nnUNetv2_move_plans_between_datasets", "nnunet_collab",
)  # fmt: skip
STUDENTS = {"CrossTeachingTrainer": ["CNN", "Transformer"], "CTRCLTrainer": ["CNN", "Transformer"]}
KNOWN = ("SupervisedTrainer", "FixMatchTrainer", *STUDENTS)
HEAD = """
name = "toy"
dataset = 1
configuration = "2d"
steps = 6
iterations_per_epoch = 2
seeds = [0]
baseline = "labels"
"""
LABELS = '[[arms]]\nname = "labels"\ntrainer = "SupervisedTrainer"\n'
FIXMATCH = '[[arms]]\nname = "fixmatch"\ntrainer = "FixMatchTrainer"\nsettings = {tau = 0.8}\n'
PAIR = '[[arms]]\nname = "pair"\ntrainer = "CrossTeachingTrainer"\nensemble = true\n'
TEST = "[test]\n"
SMALL = HEAD + TEST + LABELS + FIXMATCH
VALIDATED = HEAD + LABELS + PAIR


def inspect(name, settings, plans, configuration):
    """As `training.inspection.inspect_trainer`, of a few trainers."""
    if name not in KNOWN:
        raise CollabError(f"trainer {name!r}: nnU-Net must find it; it does not. Correct the name.")
    if settings.get("tau", 0) > 1:
        raise CollabError(f"setting 'tau': must be <= 1; got {settings['tau']}.")
    return SimpleNamespace(
        settings=dict(settings),
        published=STUDENTS.get(name, ["CNN"]),
        labeled_batch_size=settings.get("batch_size", 8),
        patch_size=[16, 16],
        needs_unlabeled=name in ("FixMatchTrainer", "CrossTeachingTrainer"),
    )


class Lab:
    """nnU-Net's folders with a planned dataset, fake commands, and a study file."""

    def __init__(self, root, monkeypatch):
        self.root, self.monkeypatch = root, monkeypatch
        self.raw, self.preprocessed = root / "raw" / "Dataset001_Toy", root / "preprocessed" / "Dataset001_Toy"
        self.results, self.file, self.folder = root / "results" / "Dataset001_Toy", root / "toy.toml", root / "study"
        for variable in ("raw", "preprocessed", "results"):
            monkeypatch.setenv(f"nnUNet_{variable}", str(root / variable))
        for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("FAKE_LOG", str(root / "calls.jsonl"))
        monkeypatch.setenv("FAKE_COUNTER", str(root / "points"))
        write_json(self.preprocessed / "nnUNetPlans.json", {"configurations": {"2d": {}}})
        write_json(self.preprocessed / "dataset.json", {"file_ending": ".nii.gz"})
        write_json(self.preprocessed / "splits_final.json", [{}, {}])
        (self.preprocessed / "gt_segmentations").mkdir()
        for case in ("t0", "t1"):
            for folder, ending in (("imagesTs", "_0000"), ("labelsTs", "")):
                path = self.raw / folder / f"{case}{ending}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{folder} {case}")
        monkeypatch.setattr(execution, "PROGRAMS", write_fakes(root / "bin"))
        monkeypatch.setattr(execution, "PATIENCE_S", 5.0)
        self.study(SMALL)

    def study(self, text):
        self.file.write_text(text)

    def check(self, inspect=inspect):
        return conduct.check_study(self.file, self.folder, "cpu", inspect)

    def run(self, jobs=1, progress=False):
        """Start the study; its exit status and what it printed."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = conduct.conduct(self.check(), execution.slots_of(jobs, "cpu", []), progress=progress)
        return status, out.getvalue()

    def printed(self, function, *arguments):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            function(self.check(), *arguments)
        return out.getvalue()

    def calls(self):
        """Name, arguments and variables of every fake command that was run, in order."""
        log = self.root / "calls.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def forget(self):
        """As if no command had been run yet."""
        for name in ("calls.jsonl", "points"):
            (self.root / name).unlink(missing_ok=True)

    def outcome(self):
        """Every table, report and checkpoint, by its path below the root."""
        paths = [*self.folder.rglob("*.csv"), *self.folder.rglob("report.html"), *self.results.rglob("*final.pth")]
        found = {path.relative_to(self.root).as_posix(): path.read_text() for path in paths}
        return {name: text.replace(str(self.root), "ROOT") for name, text in found.items()}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_fakes(folder):
    folder.mkdir()
    for name in COMMANDS:
        path = folder / name
        path.write_text(f"#!{sys.executable} -IS\n{FAKE.read_text()}")
        path.chmod(0o755)
    return folder
