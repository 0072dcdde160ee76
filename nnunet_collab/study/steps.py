"""The steps of a run, from training to scores, and those of the reports on all runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_collab.core.json_files import json_object_or_empty
from nnunet_collab.core.nnunet_folders import POSTPROCESSED
from nnunet_collab.study.description import Description
from nnunet_collab.study.rounds import rounds_of
from nnunet_collab.study.runs import Model, Places, Run, Training, training_of
from nnunet_collab.study.step import (
    FINAL,
    Command,
    Step,
    all_predicted,
    hidden,
    into,
    newer_than,
    predict_words,
    train_step,
)

COPIED = (
    "dataset.json",
    "plans.json",
    "predict_from_raw_data_args.json",
)  # files that `report` needs in a folder of predictions


def steps_of(study: Description, places: Places, run: Run, device: str, *, ahead: bool = False) -> list[Step]:
    """All steps of a run, from training to scores.

    Args:
        study: The study.
        places: Paths of the study.
        run: The run.
        device: Value of nnU-Net's `-device`.
        ahead: Of an arm with self_train, list also steps of which it is not known yet whether they will be needed.
    """
    training = training_of(study, places, run)
    if run.arm.self_train is None:
        steps = [train_step(training, fold, device) for fold in training.folds]
    else:
        steps, result = rounds_of(study, places, run).steps(device, ahead=ahead)
        if result is None:  # more steps follow when these are done
            return steps
        training = result.training
    if places.images is None or places.labels is None:
        return steps
    trained = tuple(step.name for step in steps)
    for model in run.models:
        steps += [
            _predict(training, places, model, device, trained),
            _evaluate(places, model.name, f"predict_{model.name}"),
        ]
        if study.postprocesses(run.arm):
            steps += [
                _choose_postprocessing(training, places, model, trained),
                _postprocess(places, model),
                _evaluate(places, f"{model.name}_pp", f"postprocess_{model.name}"),
            ]
    return steps


def predicted(study: Description, places: Places, run: Run) -> list[Path]:
    """Paths of a run for `report`: folders of predictions, or results folders if there are no test cases."""
    if places.images is None:
        return [final_training(study, places, run).folder(model.name) for model in run.models]
    endings = ("", "_pp") if study.postprocesses(run.arm) else ("",)
    return [places.predictions / f"{model.name}{ending}" for model in run.models for ending in endings]


def final_training(study: Description, places: Places, run: Run) -> Training:
    """The training whose models a run is compared by: with self_train, the last one so far."""
    if run.arm.self_train is None:
        return training_of(study, places, run)
    _, result = rounds_of(study, places, run).steps("cpu", ahead=True)
    return result.training if result is not None else training_of(study, places, run)


def reports(study: Description, places: Places, runs: Sequence[Run], file: Path) -> list[Step]:
    """One report, or one per model of the baseline; all other models are tested against that model.

    Args:
        study: The study.
        places: Paths of the study.
        runs: All runs.
        file: The study file; a report is written again if it has changed.
    """
    sources = [path for run in runs for path in predicted(study, places, run)]
    first = next(run for run in runs if run.arm.name == study.baseline)
    made_of = [file]
    for path in sources:
        summaries = [path / f"fold_{fold}" / "validation" / "summary.json" for fold in study.folds]
        made_of += summaries if places.images is None else [path.with_name(f"{path.name}.csv")]
    found = []
    for model in first.models:
        name = "report" if len(first.models) == 1 else f"report_{model.student or 'mean'}"
        baseline = predicted(study, places, first)[0].name.replace(first.models[0].name, model.name, 1)
        words = ["nnunet_collab", "report", *map(str, sources), "-o", str(places.study / name), "--baseline", baseline]
        if places.images is not None:
            words += ["-i", str(places.images), "-l", str(places.labels)]
        page = places.study / name / "report.html"
        done = newer_than([page], made_of)
        command = Command((*words, "--overwrite", "-np", "1"))
        make = Command(("mkdir", "-p", str(places.study)))
        found.append(Step(name, f"report against {baseline}", (make, command), done))
    return found


def _predict(training: Training, places: Places, model: Model, device: str, trained: tuple[str, ...]) -> Step:
    images = places.images or places.raw / "imagesTs"
    target = places.predictions / model.name
    words = predict_words(training, model.name, training.folds, images, hidden(target), device)
    done = all_predicted(images, target, training.files(model.name, FINAL))

    def is_done() -> bool:
        plans = json_object_or_empty(target / "plans.json")  # of the model; another round has the same name
        same = (plans.get("dataset_name"), plans.get("plans_name")) == (training.dataset, training.plans)
        return same and done()

    return Step(
        f"predict_{model.name}", f"prediction with {model.name}", into(target, Command(words)), is_done, trained
    )


def _choose_postprocessing(training: Training, places: Places, model: Model, trained: tuple[str, ...]) -> Step:
    target = places.study / "postprocessing" / model.name
    model_of = ("-c", training.configuration, "-p", training.plans, "-tr", model.name, "-f", *map(str, training.folds))
    merge = Command(("nnUNetv2_accumulate_crossval_results", training.dataset, *model_of, "-o", str(hidden(target))))
    labels = str(places.preprocessed.with_name(training.dataset) / "gt_segmentations")
    choose = ("nnUNetv2_determine_postprocessing", "-i", str(hidden(target)), "-ref", labels, "--remove_postprocessed")
    summaries = training.files(model.name, "validation/summary.json")
    return Step(
        f"choose_postprocessing_{model.name}",
        f"choice of the postprocessing of {model.name}",
        into(target, merge, Command(choose)),
        newer_than([target / "postprocessing.pkl", target / "postprocessing.json"], summaries),
        trained,
    )


def _postprocess(places: Places, model: Model) -> Step:
    source, target = places.predictions / model.name, places.predictions / f"{model.name}_pp"
    chosen = places.study / "postprocessing" / model.name
    described = ("-plans_json", str(source / "plans.json"), "-dataset_json", str(source / "dataset.json"))
    function = ("-pp_pkl_file", str(chosen / "postprocessing.pkl"))
    words = ("nnUNetv2_apply_postprocessing", "-i", str(source), "-o", str(hidden(target)), *function, *described)
    # Files that mark the folder for `report` as predictions, and as postprocessed ones.
    copy = ("cp", *(str(source / name) for name in COPIED), str(hidden(target)))
    mark = ("cp", str(chosen / "postprocessing.json"), str(hidden(target) / POSTPROCESSED))
    return Step(
        f"postprocess_{model.name}",
        f"postprocessing of {model.name}",
        into(target, Command(words), Command(copy), Command(mark)),
        all_predicted(places.images or target, target, [source, chosen / "postprocessing.pkl"]),
        (f"predict_{model.name}", f"choose_postprocessing_{model.name}"),
    )


def _evaluate(places: Places, name: str, after: str) -> Step:
    folder = places.predictions / name
    table = folder.with_name(f"{name}.csv")
    words = ("nnunet_collab", "evaluate", "-p", str(folder), "-l", str(places.labels), "-o", str(table), "-np", "1")

    def is_done() -> bool:
        labels = [path for path in (places.labels or folder).iterdir() if path.is_file()]
        return newer_than([table], [folder, *labels])()

    return Step(f"evaluate_{name}", f"scores of {name}", (Command(words),), is_done, (after,))
