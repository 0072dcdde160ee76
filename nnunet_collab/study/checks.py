"""Check everything that can be wrong with a study before the first training starts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunet_collab.core.checkpoint import KEY
from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.files import write_json
from nnunet_collab.core.json_files import json_object_or_empty, read_json_object
from nnunet_collab.core.nnunet_folders import RESULTS, SPLIT_FILE, case_images, find_dataset
from nnunet_collab.core.settings import differences
from nnunet_collab.study.description import Arm, Description
from nnunet_collab.study.rounds import rounds_of
from nnunet_collab.study.rounds_check import check_rounds, labels_alone
from nnunet_collab.study.runs import Places, Run, TrainerFacts, make_run, results_folder, settings_of

# (trainer, settings, plans, configuration) -> properties of its training, or a CollabError.
Inspect = Callable[[str, Mapping[str, Any], Mapping[str, Any], str], TrainerFacts]
# Properties that must be equal in all arms, or be named in an arm's `differs`.
COMPARED = ("steps", "labeled_batch_size", "patch_size")
RECORD = "study.json"
_OURS = (
    "lock",
    "logs",
    "predictions",
    "postprocessing",
    "report",
    "self_train",
    "slurm.sh",
    "status.txt",
    "study.json",
    ".",
)
_SAME_STUDY = ("dataset", "configuration", "plans", "folds", "test")


def find_places(study: Description, folder: Path) -> Places:
    """The folders of the dataset and of the study.

    Raises:
        CollabError: If a variable of nnU-Net is not set, the dataset is missing or not planned, a fold does not exist,
            or the test cases are missing or lack labels.
    """
    raw, preprocessed = find_dataset(study.dataset)
    if not os.environ.get(RESULTS):
        raise CollabError(f"{RESULTS}: nnU-Net's folder of results must be set; it is not. Write: export {RESULTS}=...")
    _check_plans(study, preprocessed)
    images = labels = None
    if study.test is not None:
        images, labels = (_test_folder(raw, name) for name in (study.test.images, study.test.labels))
        _check_test_cases(images, labels, preprocessed)
    results = Path(os.environ[RESULTS]).resolve() / raw.name
    return Places(folder.resolve(), raw.name, raw.resolve(), preprocessed.resolve(), results, images, labels)


def make_runs(study: Description, places: Places, inspect: Inspect) -> list[Run]:
    """All runs. Every arm gets its first seed before any arm gets its second.

    Raises:
        CollabError: If a trainer is unknown or refuses its settings, an arm differs from the baseline without naming it
            in `differs`, or a run was trained before with other settings.
    """
    plans = read_plans(study, places.preprocessed)
    facts: dict[str, list[TrainerFacts]] = {}
    for arm in study.arms:
        facts[arm.name] = [_facts(study, arm, seed, plans, inspect) for seed in study.seeds_of(arm)]
        if arm.self_train is not None and facts[arm.name][0].needs_unlabeled:
            raise CollabError(f"arm {arm.name!r}, self_train: {labels_alone(arm.trainer)}")
    baseline = next(arm for arm in study.arms if arm.name == study.baseline)
    expected = _compared(study, baseline, facts[baseline.name][0])
    for arm in study.arms:
        _check_fairness(arm, _compared(study, arm, facts[arm.name][0]), expected)
    runs = [
        (index, make_run(study, arm, seed, known))
        for arm in study.arms
        for index, (seed, known) in enumerate(zip(study.seeds_of(arm), facts[arm.name], strict=True))
    ]
    ordered = [run for _, run in sorted(runs, key=lambda pair: pair[0])]
    for run in ordered:
        _refuse_other_settings(study, places, run)
        if run.arm.self_train is not None:
            check_rounds(rounds_of(study, places, run), f"arm {run.arm.name!r}, self_train")
    return ordered


def claim_folder(study: Description, folder: Path) -> None:
    """Create the study's folder, or check that it belongs to this study.

    Raises:
        CollabError: If it belongs to another study, or holds other files.
    """
    described = study.model_dump(mode="json")
    ours = {key: described[key] for key in _SAME_STUDY}
    record = folder / RECORD
    if not record.is_file():
        strange = [path.name for path in folder.iterdir() if not path.name.startswith(_OURS)] if folder.exists() else []
        if strange:
            raise CollabError(
                f"{folder}: must be new or belong to this study; it holds {listed(strange)}. Name another folder "
                f"with -o."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, ours)
        return
    theirs = json_object_or_empty(record)
    if theirs != ours:
        raise CollabError(
            f"{folder}: must belong to this study; it holds another study, which differs in "
            f"{'; '.join(differences(ours, theirs))}. Give this study another name, or another folder with -o."
        )


def read_plans(study: Description, preprocessed: Path) -> dict[str, Any]:
    """plans.json of the dataset.

    Raises:
        CollabError: If there is none.
    """
    configuration = study.configuration
    command = f"Run nnUNetv2_plan_and_preprocess -d {study.dataset} -c {configuration}, or correct plans in the study."
    return read_json_object(preprocessed / f"{study.plans}.json", command)


def _check_plans(study: Description, preprocessed: Path) -> None:
    plans = read_plans(study, preprocessed)
    known = plans.get("configurations", {})
    if study.configuration not in known:
        raise CollabError(
            f"configuration: must be one of {study.plans}, {', '.join(known)}; got {study.configuration!r}. Correct it."
        )
    split = preprocessed / SPLIT_FILE
    if not split.is_file():
        return  # nnU-Net, or the trainer, makes the folds
    folds = len(json.loads(split.read_text(encoding="utf-8")))
    missing = [str(fold) for fold in study.folds if fold != "all" and fold >= folds]
    if missing:
        raise CollabError(f"folds: {split} has folds 0 to {folds - 1}; got {', '.join(missing)}. Correct folds.")


def _test_folder(raw: Path, name: str) -> Path:
    folder = raw / name  # an absolute path does not change
    if not folder.is_dir():
        raise CollabError(f"test: the folder {folder} must exist; it does not. Correct [test], or create the folder.")
    return folder.resolve()


def _check_test_cases(images: Path, labels: Path, preprocessed: Path) -> None:
    facts = read_json_object(preprocessed / "dataset.json", "Plan and preprocess the dataset again.")
    ending = str(facts["file_ending"])
    cases = list(case_images(images, ending))
    if not cases:
        raise CollabError(f"test: {images} must hold cases named CASE_0000{ending}; it holds none. Correct [test].")
    labeled = {path.name.removesuffix(ending) for path in labels.glob(f"*{ending}")}
    if unlike := sorted(labeled ^ set(cases)):
        raise CollabError(
            f"test: every case of {images} must have a label in {labels}, and every label an image; unmatched: "
            f"{listed(unlike)}. Add what is missing, or name other folders."
        )


def _facts(study: Description, arm: Arm, seed: int, plans: Mapping[str, Any], inspect: Inspect) -> TrainerFacts:
    try:
        return inspect(arm.trainer, settings_of(study, arm, seed), plans, study.configuration)
    except CollabError as error:
        raise CollabError(f"arm {arm.name!r}, seed {seed}: {error}") from error


def _compared(study: Description, arm: Arm, facts: TrainerFacts) -> dict[str, Any]:
    return {
        "steps": study.steps_of(arm) * (arm.self_train.trainings if arm.self_train else 1),
        "labeled_batch_size": facts.labeled_batch_size,
        "patch_size": list(facts.patch_size),
    }


def _check_fairness(arm: Arm, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise unless an arm is trained like the baseline, or names the difference in `differs`."""
    where = f"arm {arm.name!r}"
    if unknown := [name for name in arm.differs if name not in COMPARED]:
        raise CollabError(f"{where}, differs: unknown {', '.join(unknown)}. Valid properties: {', '.join(COMPARED)}.")
    for name in COMPARED:
        if found[name] != expected[name] and name not in arm.differs:
            raise CollabError(
                f"{where}: must have the baseline's {name}, {expected[name]}, or name it in differs; got "
                f'{found[name]}. Make them equal, or write differs = ["{name}"].'
            )
        if found[name] == expected[name] and name in arm.differs:
            raise CollabError(
                f"{where}: differs names {name}, so it must differ from the baseline's; both are {found[name]}. "
                "Remove it from differs, or set another value."
            )


def _refuse_other_settings(study: Description, places: Places, run: Run) -> None:
    """Raise if a training under the run's name exists that had other settings."""
    folder = results_folder(places, study, run.trainer)
    if not any(folder.glob("fold_*/checkpoint_*.pth")):
        return
    recorded = json_object_or_empty(folder / "plans.json").get(KEY, {}).get("settings")
    if recorded is not None and (different := differences(dict(run.recorded), recorded)):
        raise CollabError(
            f"arm {run.arm.name!r}: {folder} was trained with other settings: {'; '.join(different[:5])}. Rename the "
            "arm, so that it gets folders of its own, or remove that folder."
        )
