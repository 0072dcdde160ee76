"""Check everything that can be wrong with a self-training before the first command runs. No label is opened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.json_files import json_object_or_empty
from nnunet_collab.core.nnunet_folders import (
    SPLIT_FILE,
    UNLABELED,
    case_images,
    folders_of_id,
    read_dataset_json,
    read_split,
)
from nnunet_collab.core.patients import patient_lookup, patient_rule
from nnunet_collab.core.pseudo_labels import MARK, refuse_pseudo_labels
from nnunet_collab.study.rounds import Rounds


def check_rounds(rounds: Rounds, where: str) -> None:
    """Raise if the self-training cannot be done.

    Args:
        rounds: The self-training.
        where: What describes it; it starts the message.

    Raises:
        CollabError: If there are no unlabeled images, the dataset has pseudo labels itself, names or ids are taken,
            options contradict each other or the folds, or the disk is too small. All problems are listed together.
    """
    facts = read_dataset_json(rounds.raw / "dataset.json", fix="Correct the dataset, or nnUNet_raw.")
    refuse_pseudo_labels(facts, f"{where}: {rounds.raw.name}", "self-training")
    unlabeled = case_images(rounds.raw / UNLABELED, facts["file_ending"])
    labeled = set(facts.get("dataset") or case_images(rounds.raw / "imagesTr", facts["file_ending"]))
    problems = [*_option_problems(rounds, len(labeled)), *_split_problems(rounds), *_taken_ids(rounds)]
    if not unlabeled:
        problems.append(
            f"{rounds.raw / UNLABELED} must hold unlabeled images, named CASE_0000{facts['file_ending']}; there are "
            "none. Put them there."
        )
    if doubled := sorted(labeled & unlabeled.keys()):
        problems.append(f"a case must be in imagesTr or in {UNLABELED}; in both: {listed(doubled)}. Rename one.")
    try:  # otherwise an image of a validation patient would not be noticed
        patient_lookup(patient_rule(facts, rounds.raw, rounds.preprocessed), unlabeled)
    except CollabError as error:
        problems.append(f"{UNLABELED}: {error}")
    if unlabeled and labeled:
        problems += _disk_problems(rounds, [paths[0] for paths in unlabeled.values()], len(labeled))
    if problems:
        raise CollabError("\n- ".join([f"{where}: nothing was started, because of:", *problems]))


def labels_alone(trainer: str) -> str:
    """The refusal of a trainer that learns from unlabeled images itself."""
    return (
        f"the trainer must learn from labels alone, because each round turns unlabeled images into labeled ones; "
        f"{trainer} learns from unlabeled images. Use SupervisedTrainer or nnUNetTrainer."
    )


def told(rounds: Rounds) -> list[str]:
    """What stability means here, and what decides when the rounds end, in sentences for the user."""
    *members, last = rounds.predictions()
    if rounds.options.compares_folds(len(rounds.first.folds)):
        lines = [f"Stability of a pseudo label: mean Dice of each of {len(members)} folds with their ensemble."]
    else:
        names = ", ".join(member.checkpoint for member in members)
        lines = [
            f"Stability of a pseudo label: mean Dice of {names} with {last.checkpoint} of the same training, because "
            + ("checkpoints were asked for." if len(rounds.first.folds) > 1 else "one fold has no other to agree with.")
        ]
    if not rounds.validates:
        lines.append(
            "Fold `all` has no validation cases with true labels, so nothing tells when to stop: all rounds are done, "
            "and the last one is the result."
        )
    elif len(rounds.first.folds) > 1:
        lines.append(
            "The ensemble has seen the validation cases of each fold in other folds. So the validation Dice after "
            "round 0 is somewhat too high; compare on test cases."
        )
    return lines


def _option_problems(rounds: Rounds, labeled: int) -> list[str]:
    options, folds, problems = rounds.options, rounds.first.folds, []
    if options.share is not None and options.threshold is not None:
        problems.append("either share or threshold decides which pseudo labels are kept; both are given. Remove one.")
    if options.compares_folds(len(folds)) and len(folds) < 2:
        problems.append(
            f"members = folds needs at least 2 folds that can agree; there is {len(folds)}. Add folds, or set members "
            "to checkpoints."
        )
    if labeled == 1 and folds != ("all",):
        problems.append(
            "with one labeled case there is no validation case, so the fold must be `all`. Stability then means that "
            f"consecutive checkpoints of this one training agree; got folds {listed(list(map(str, folds)))}. Write all."
        )
    if wrong := [name for name in options.checkpoints if Path(name).name != name or not name.endswith(".pth")]:
        problems.append(f"checkpoints must be names of files such as checkpoint_best.pth; got {listed(wrong)}.")
    if len(set(options.checkpoints)) < len(options.checkpoints):
        problems.append(f"checkpoints must be different; got {listed(options.checkpoints)}. Remove one.")
    if len(rounds.first.models) > 1 and rounds.first.own not in rounds.first.models:
        problems.append(
            f"one model must make the pseudo labels; {rounds.first.trainer} publishes {listed(rounds.first.models)}. "
            "Let their mean do it: set ensemble of the arm, or the setting validate_ensemble, to true."
        )
    if (last := rounds.first_id + options.rounds - 1) > 999:
        problems.append(f"datasets need ids up to 999; {options.rounds} rounds would end with {last}. Start lower.")
    return problems


def _split_problems(rounds: Rounds) -> list[str]:
    path = rounds.preprocessed / SPLIT_FILE
    try:
        split = read_split(path) if path.is_file() else []
    except CollabError as error:
        return [str(error)]
    if any(fold.get("unlabeled") for fold in split):
        return [
            f"{path}: unlabeled images must be in {UNLABELED}, because nnU-Net reads all labels of labelsTr; this "
            "split has unlabeled cases. Move them with nnunet_collab split --labeled ... --to NEW_ID."
        ]
    return []


def _taken_ids(rounds: Rounds) -> list[str]:
    problems = []
    for number in range(1, rounds.options.rounds + 1):
        name = rounds.dataset(number)
        others = sorted({path.name for path in folders_of_id(int(name[7:10])) if path.name != name})
        mark = json_object_or_empty(rounds.raw.with_name(name) / "dataset.json").get(MARK, {})
        ours = isinstance(mark, dict) and mark.get("of") == rounds.first.dataset and mark.get("round") == number
        if rounds.raw.with_name(name).exists() and not ours:
            others.append(name)
        if others:
            problems.append(f"id {int(name[7:10])} of round {number} is taken by {listed(others)}. Set another `to`.")
    return problems


def _disk_problems(rounds: Rounds, images: Iterable[Path], labeled: int) -> list[str]:
    """Compare the free space with an estimate from above.

    A segmentation takes at most the space of one channel of its image. A preprocessed case takes the space of a labeled
    one on the average. What is there already is not counted again, nor predictions whose dataset is written.
    """
    channels = [path.stat().st_size for path in images]
    plans = json_object_or_empty(rounds.preprocessed / f"{rounds.first.plans}.json").get("configurations", {})
    identifier = str(plans.get(rounds.first.configuration, {}).get("data_identifier", ""))
    own = _held(rounds.preprocessed / identifier) if identifier else 0
    predictions = data = 0
    for number in range(1, rounds.options.rounds + 1):
        name = rounds.dataset(number)
        if not rounds.raw.with_name(name).exists():
            here = sum(channels) * len(rounds.predictions())
            predictions += max(0, here - _held(rounds.work / f"round_{number}"))
        here = own * (labeled + len(channels)) // labeled
        data += max(0, here - _held(rounds.preprocessed.with_name(name)))
    needed: dict[int, tuple[Path, int]] = {}
    for place, size in ((rounds.work, predictions), (rounds.preprocessed, data)):
        there = next(part for part in (place, *place.absolute().parents) if part.exists())
        first, before = needed.get(os.stat(there).st_dev, (there, 0))
        needed[os.stat(there).st_dev] = (first, before + size)
    return [
        f"{place}: predictions and preprocessed data need about {size / 1e6:.1f} MB more; "
        f"{free / 1e6:.1f} MB are free. Free some space, or do fewer rounds."
        for place, size in needed.values()
        if (free := shutil.disk_usage(place).free) < size
    ]


def _held(folder: Path) -> int:
    """Size of all files below a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
