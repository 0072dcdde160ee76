"""Publish each student of a run as an ordinary nnU-Net model, in its own results folder.

A run in `<Trainer>__<plans>__<configuration>/fold_X` is published as
`<Trainer>_<Student>__<plans>__<configuration>/fold_X`, with plans.json, dataset.json, dataset_fingerprint.json and the
checkpoints. A published checkpoint names a trainer of nnU-Net itself. So a student with a network of nnU-Net predicts
without this package. Any other student needs this package to be installed, but not `nnUNet_extTrainer`.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import write_atomically, write_json
from nnunet_collab.core.names import require_plain_name
from nnunet_collab.inference.complete_weights import require_complete
from nnunet_collab.inference.stock_trainers import stock_trainer

KEY = checkpoints.KEY
# Entries that a published model keeps. The others are only for continuing the training: a teacher, multipliers, cases.
_RECORD = ("settings", "iteration", "weights_from")
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")


def student_folder(run: Path, student: str) -> Path:
    """Results folder of a published student.

    Args:
        run: `<results>/<dataset>/<Trainer>__<plans>__<configuration>`.
        student: Name of the student.
    """
    trainer, plans, configuration = run.name.split("__")
    require_plain_name(f"{run}, name of a student in its plans.json", student, "Publish a run of your own.")
    return run.with_name(f"{trainer}_{student}__{plans}__{configuration}")


def publish_fold(fold: Path, only: Iterable[str] | None = None) -> list[Path]:
    """Publish the students of one fold from the checkpoints on disk.

    Args:
        fold: `.../<Trainer>__<plans>__<configuration>/fold_X`.
        only: Names of the students to publish; None for those in the settings.

    Returns:
        The written folders of the fold, `.../<Trainer>_<Student>__.../fold_X`.

    Raises:
        CollabError: If the folder is not a run of this package; if its final checkpoint is missing or damaged; if it
            has no such student; if it was trained with other networks than its plans.json describes; if another fold of
            the student was published with another network; or if the student's folder belongs to another training.
    """
    run = fold.parent
    plans, dataset = _read_json(run / "plans.json"), _read_json(run / "dataset.json")
    if KEY not in plans:
        raise CollabError(
            f"{run}: must be the results folder of a trainer of nnunet_collab; its plans.json is from another trainer. "
            "Correct the path."
        )
    record = plans[KEY]
    if "student" in record:
        raise CollabError(
            f"{run}: is already a published student, {record['student']}. Use the folder of its training."
        )
    learners = [s["name"] for s in record["settings"]["students"] if not s["frozen"]]
    names = list(only) if only is not None else record["settings"].get("publish") or learners
    unknown = [name for name in names if name not in learners]
    if unknown:
        raise CollabError(f"{run}: has no student {', '.join(unknown)} to publish; it has {', '.join(learners)}.")
    if not (fold / CHECKPOINTS[0]).is_file():
        raise CollabError(f"{fold}: has no {CHECKPOINTS[0]}, so the training is not finished. Continue it with --c.")
    configuration = run.name.split("__")[2]
    targets = {name: student_folder(run, name) for name in names}
    student_plans = {name: _student_plans(plans, configuration, name) for name in names}
    for name in names:
        _refuse_other_network(targets[name], student_plans[name], configuration, fold.name)
    loaded = {file: checkpoints.load_training(file) for file in (fold / name for name in CHECKPOINTS) if file.is_file()}
    for file, checkpoint in loaded.items():
        _refuse_other_plans(file, checkpoint, record)
        checkpoints.require_finite_weights(file, checkpoint)
        for name in names:
            require_complete(file, name, _weights(checkpoint, name), student_plans[name], configuration, dataset)
    for name in names:
        _write_folder(targets[name], fold, student_plans[name], dataset)
    for file, checkpoint in loaded.items():
        files = {n: targets[n] / fold.name / file.name for n in names}
        _publish_checkpoint(checkpoint, files, student_plans, configuration)
    return [targets[name] / fold.name for name in names]


def _write_folder(target: Path, fold: Path, plans: dict[str, Any], dataset: dict[str, Any]) -> None:
    """Write all files of a published student except its checkpoints."""
    run = fold.parent
    (target / fold.name).mkdir(parents=True, exist_ok=True)
    write_json(target / "plans.json", plans)
    write_json(target / "dataset.json", dataset)
    # nnUNetv2_export_model_to_zip fails without a progress.png.
    for file in (run / "dataset_fingerprint.json", fold / "progress.png"):
        if file.is_file():
            write_atomically(target / file.relative_to(run), partial(shutil.copyfile, file))


def _student_plans(plans: dict[str, Any], configuration: str, name: str) -> dict[str, Any]:
    """The run's plans with the student's network in place of the planned one."""
    own = copy.deepcopy(plans)
    own["configurations"][configuration]["architecture"] = own[KEY]["students"][name]
    own[KEY]["student"] = name
    return own


def _refuse_other_network(target: Path, plans: dict[str, Any], configuration: str, fold: str) -> None:
    """Refuse a fold with another network or patch size, because all folds of a folder share one plans.json."""
    path = target / "plans.json"
    if not path.is_file():
        return
    published = _read_json(path)
    if "student" not in published.get(KEY, {}):
        raise CollabError(
            f"{target}: must hold a published student; it is the results folder of another training, whose run_name "
            f"equals the name of this student. Rename that folder, or use another run_name for one of the two."
        )
    new, old = (p["configurations"][configuration] for p in (plans, published))
    other_folds = [f.name for f in target.glob("fold_*") if f.name != fold and (f / CHECKPOINTS[0]).is_file()]
    for key in ("architecture", "patch_size"):
        if new.get(key) != old.get(key) and other_folds:
            raise CollabError(
                f"{target}: all folds of a model must share one plans.json; {', '.join(other_folds)} was published "
                f"with another {key}. Train with another run_name, or move that folder away."
            )


def _refuse_other_plans(file: Path, checkpoint: dict[str, Any], record: dict[str, Any]) -> None:
    """Refuse a fold that was trained with other plans. The folds of a run share its plans.json, which may be newer."""
    trained = checkpoint["init_args"]["plans"][KEY]["students"]
    if trained != record["students"]:
        raise CollabError(
            f"{file}: must have been trained with the networks in the plans.json of its run; it was not. Another fold "
            f"was trained with other settings in the same folder. Use a different run_name for each."
        )


def _publish_checkpoint(
    checkpoint: dict[str, Any], targets: dict[str, Path], plans: dict[str, dict[str, Any]], configuration: str
) -> None:
    for name, target in targets.items():
        published = {
            "network_weights": _weights(checkpoint, name),
            "optimizer_state": {},
            "grad_scaler_state": None,
            "logging": checkpoint["logging"],
            "_best_ema": checkpoint["_best_ema"],
            "current_epoch": checkpoint["current_epoch"],
            "init_args": {**checkpoint["init_args"], "plans": plans[name]},
            "trainer_name": stock_trainer(plans[name]["configurations"][configuration]["architecture"]),
            "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
            KEY: {
                **{key: checkpoint[KEY][key] for key in _RECORD if key in checkpoint[KEY]},
                "student": name,
                "trained_by": checkpoint["trainer_name"],
            },
        }
        checkpoints.save(target, published)


def _weights(checkpoint: dict[str, Any], student: str) -> dict[str, Tensor]:
    prefix = f"students.{student}.network."
    return {k.removeprefix(prefix): v for k, v in checkpoint["network_weights"].items() if k.startswith(prefix)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as error:  # ValueError: not JSON, or not text
        raise CollabError(f"{path}: must be a readable JSON file of a results folder; {error}.") from error
