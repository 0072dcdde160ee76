"""nnU-Net's real commands on tiny phantoms: the folders, the environment, and running a command to its end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk
import torch
from running import Done, run_forked, run_new, shown

from nnunet_collab.demo.phantom import write_dataset

ROOT = Path(__file__).parents[2]
INTERPRETER = Path(__file__).with_name("interpreter")
KILLED_TRAIN = Path(__file__).with_name("killed_train.py")
SCRIPTS = Path(sysconfig.get_path("scripts"))
DATASETS = {"plain": 901, "ignore": 902, "regions": 903, "regions_ignore": 904}
CONFIGURATIONS = ("2d", "3d_fullres")
STUDENTS = ("CNN", "Transformer")
VALIDATION_CASE, TEST_CASE = "phantomTr003", "phantomTs000"
TINY = {
    "epochs": 2,
    "iterations_per_epoch": 2,
    "val_iterations_per_epoch": 1,
    "save_every": 1,
    "students": {"Transformer": {"network": "segformer_b0"}},
}


@dataclass(frozen=True)
class Workspace:
    """nnU-Net's folders `raw`, `preprocessed` and, for every group of runs, one of results."""

    root: Path

    def dataset(self, kind):
        return f"Dataset{DATASETS[kind]}_{kind}"

    def preprocessed(self, kind):
        return self.root / "preprocessed" / self.dataset(kind)

    def results(self, group, kind="plain"):
        return self.root / group / self.dataset(kind)

    def fold(self, group, kind, configuration, trainer="CTRCLTrainer", fold=0):
        return self.results(group, kind) / f"{trainer}__nnUNetPlans__{configuration}" / f"fold_{fold}"

    def variables(self, group, settings=None, workers=0):
        """nnU-Net's and this package's environment variables; `group` is the folder of results."""
        (self.root / group).mkdir(exist_ok=True)
        return {
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(self.root / group),
            "nnUNet_extTrainer": str(ROOT / "trainers"),
            "nnUNet_n_proc_DA": str(workers),
            "nnUNet_def_n_proc": "1",
            "nnUNet_collab_settings": json.dumps(settings or {}),
        }

    def run(self, *command, group="results", settings=None, workers=0, fails=False, new=False, **changes):
        """Run a command; an unexpected end, or none at all, is a failure that shows what it printed.

        It runs in a child of a process that has imported nnU-Net, since the imports take longer than the work.

        Args:
            command: A console script or a path of Python code, then its arguments.
            group: Folder of results.
            settings: For `nnUNet_collab_settings`.
            workers: Processes that load data.
            fails: Whether it must fail.
            new: Whether it is started as users do, and imports everything itself.
            changes: Further environment variables; None removes one.
        """
        program, *arguments = (str(word) for word in command)
        if program != "python":
            arguments = [program if program.endswith(".py") else str(SCRIPTS / program), *arguments]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_", "E2E_"))}
        environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "E2E_FORK": "1"}
        environment |= {"PYTHONPATH": os.pathsep.join([str(INTERPRETER), str(ROOT)]), "CUDA_VISIBLE_DEVICES": ""}
        environment |= self.variables(group, settings, workers)
        for name, value in changes.items():
            environment.pop(name, None)
            environment |= {} if value is None else {name: str(value)}
        done = (run_new if new else run_forked)(arguments, environment, self.root)
        assert (done.code != 0) == fails, f"{' '.join(map(str, command))}: ended with {done.code}\n{shown(done)}"
        return done

    def train(self, kind, configuration, *flags, fold=0, settings=TINY, **options):
        """`nnUNetv2_train` with CTRCLTrainer on the CPU."""
        arguments = (DATASETS[kind], configuration, fold, "-tr", "CTRCLTrainer", "-device", "cpu", *flags)
        return self.run("nnUNetv2_train", *arguments, settings=settings, **options)

    def predict(self, kind, configuration, trainer, output, *flags, **options):
        """`nnUNetv2_predict` of fold 0's validation case and the test case into `root/output`; returns that folder."""
        images, target = self.root / "inputs" / kind, self.root / output
        model = ("-d", DATASETS[kind], "-c", configuration, "-f", 0, "-tr", trainer)
        few = ("-device", "cpu", "-npp", 0, "-nps", 0)
        self.run("nnUNetv2_predict", "-i", images, "-o", target, *model, *few, *flags, **options)
        return target


@dataclass(frozen=True)
class Training:
    """A finished training and where its results are."""

    workspace: Workspace
    kind: str
    configuration: str
    done: Done
    group: str = "results"
    trainer: str = "CTRCLTrainer"
    number: int = 0

    @property
    def fold(self):
        """The trainer's own folder."""
        return self.workspace.fold(self.group, self.kind, self.configuration, self.trainer, self.number)

    def student(self, name):
        """A published student's folder."""
        trainer = f"{self.trainer}_{name}"
        return self.workspace.fold(self.group, self.kind, self.configuration, trainer, self.number)

    def checkpoint(self, student=None, name="checkpoint_final.pth"):
        folder = self.fold if student is None else self.student(student)
        return torch.load(folder / name, map_location="cpu", weights_only=True)


def read_json(path):
    return json.loads(path.read_text())


def read_mask(path):
    """Labels of a NIfTI file, axes (z, y, x)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def digest(path):
    """Of a file's bytes; checkpoints are too large for pytest to compare and show."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differing_tensors(a, b):
    """Names of the entries in which two state dicts differ, in any bit."""
    return [name for name in sorted({*a, *b}) if name not in a or name not in b or not torch.equal(a[name], b[name])]


def make_workspace(root):
    """Four datasets, planned by nnU-Net and preprocessed, whose planned networks are then made tiny."""
    for number, kind in enumerate(DATASETS):
        folder = root / "raw" / f"Dataset{DATASETS[kind]}_{kind}"
        write_dataset(folder, n_train=4, n_test=1, seed=number, shape=(6, 48, 48), spacing_mm=(8, 3, 3), kind=kind)
    workspace = Workspace(root)
    one = ("-np", 1, 1, "-npfp", 1)
    planned = ("-d", *DATASETS.values(), "-c", *CONFIGURATIONS)
    # Planning sets as many threads as there are loader processes, so there must be one.
    workspace.run("nnUNetv2_plan_and_preprocess", *planned, *one, workers=1, new=True)
    for kind in DATASETS:
        folder = workspace.preprocessed(kind)
        shrink(folder / "nnUNetPlans.json")
        cases = [f"phantomTr{number:03d}" for number in range(4)]
        folds = [{"train": cases[:3], "val": cases[3:]}, {"train": cases[:2], "val": cases[2:]}]
        (folder / "splits_final.json").write_text(json.dumps(folds))
        raw, inputs = root / "raw" / workspace.dataset(kind), root / "inputs" / kind
        shutil.copytree(raw / "imagesTs", inputs)
        shutil.copy(raw / "imagesTr" / f"{VALIDATION_CASE}_0000.nii.gz", inputs)
    return workspace


def shrink(path):
    """Few features, one convolution per stage, two samples per batch; and a cascade, which small images do not get.

    Its low resolution is the full one, whose preprocessed cases exist.
    """
    plans = read_json(path)
    for name in CONFIGURATIONS:
        configuration = plans["configurations"][name]
        configuration["batch_size"] = 2
        network = configuration["architecture"]["arch_kwargs"]
        stages = network["n_stages"]
        network["features_per_stage"] = [4, *[8] * (stages - 1)]
        network["n_conv_per_stage"] = [1] * stages
        network["n_conv_per_stage_decoder"] = [1] * (stages - 1)
    full = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_lowres"] = {**full, "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    path.write_text(json.dumps(plans))


def remove(root):
    """Forget a workspace: it holds gigabytes."""
    shutil.rmtree(root, ignore_errors=True)
