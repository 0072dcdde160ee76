"""The steps of a run: their commands, and the check on disk whether a step is done.

Only its results decide whether a step is done: they exist, are complete, and are not older than its inputs. Commands of
nnU-Net that write file by file write to a hidden folder, which is renamed when the command has ended. So a folder with
its final name is complete. nnU-Net's own `--continue_prediction` would keep a half-written file.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_collab.core.json_files import json_object_or_empty
from nnunet_collab.core.nnunet_folders import POSTPROCESSED, case_images
from nnunet_collab.study.description import Description
from nnunet_collab.study.runs import Model, Places, Run, results_folder

FINAL = "checkpoint_final.pth"
COPIED = (
    "dataset.json",
    "plans.json",
    "predict_from_raw_data_args.json",
)  # files that `report` needs in a folder of predictions


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        words: Program and arguments.
        variables: Environment variables that it needs besides those of nnU-Net.
    """

    words: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """The command as a line for a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*variables, shlex.join(self.words)])


@dataclass(frozen=True)
class Step:
    """Commands that belong together. Unless the step is done, all of them run again.

    Attributes:
        name: Unique name within the run; also the name of the log.
        title: Title for the user.
        commands: Commands in order.
        is_done: Function that checks the disk.
        needs: Names of the steps on which it depends; if one of them must run, this one must run, too.
    """

    name: str
    title: str
    commands: tuple[Command, ...]
    is_done: Callable[[], bool]
    needs: tuple[str, ...] = ()


def pending(steps: Sequence[Step]) -> list[Step]:
    """The steps that must run, in order."""
    found: dict[str, Step] = {}
    for step in steps:
        if any(name in found for name in step.needs) or not step.is_done():
            found[step.name] = step
    return list(found.values())


def steps_of(study: Description, places: Places, run: Run, device: str) -> list[Step]:
    """All steps of a run, from training to scores."""
    steps = [_train(study, places, run, fold, device) for fold in study.folds]
    if places.images is None or places.labels is None:
        return steps
    trained = tuple(step.name for step in steps)
    for model in run.models:
        steps += [
            _predict(study, places, model, device, trained),
            _evaluate(places, model.name, f"predict_{model.name}"),
        ]
        if study.postprocesses(run.arm):
            steps += [
                _choose_postprocessing(study, places, model, trained),
                _postprocess(places, model),
                _evaluate(places, f"{model.name}_pp", f"postprocess_{model.name}"),
            ]
    return steps


def predicted(study: Description, places: Places, run: Run) -> list[Path]:
    """Paths of a run for `report`: folders of predictions, or results folders if there are no test cases."""
    if places.images is None:
        return [results_folder(places, study, model.name) for model in run.models]
    endings = ("", "_pp") if study.postprocesses(run.arm) else ("",)
    return [places.predictions / f"{model.name}{ending}" for model in run.models for ending in endings]


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
        done = _newer_than([page], made_of)
        command = Command((*words, "--overwrite", "-np", "1"))
        make = Command(("mkdir", "-p", str(places.study)))
        found.append(Step(name, f"report against {baseline}", (make, command), done))
    return found


def _train(study: Description, places: Places, run: Run, fold: int | str, device: str) -> Step:
    words = (
        "nnUNetv2_train",
        places.dataset,
        study.configuration,
        str(fold),
        "-tr",
        run.arm.trainer,
        "-p",
        study.plans,
    )
    own = results_folder(places, study, run.trainer) / f"fold_{fold}"
    folders = [results_folder(places, study, model.name) / f"fold_{fold}" for model in run.models]

    def is_done() -> bool:
        checkpoints = [folder / FINAL for folder in (own, *folders)]
        summaries = [folder / "validation" / "summary.json" for folder in folders]
        return _newer_than([*checkpoints, *summaries], [own / FINAL])() and all(map(_is_json, summaries))

    # With --c a training continues, or starts if there is none, or repeats an interrupted validation.
    command = Command((*words, "--c", "-device", device), run.variables)
    return Step(f"train_fold_{fold}", f"training of fold {fold}", (command,), is_done)


def _predict(study: Description, places: Places, model: Model, device: str, trained: tuple[str, ...]) -> Step:
    target = places.predictions / model.name
    words = ("nnUNetv2_predict", "-d", places.dataset, "-c", study.configuration, "-p", study.plans, "-tr", model.name)
    arguments = ("-f", *map(str, study.folds), "-i", str(places.images), "-o", str(_hidden(target)), "-device", device)
    checkpoints = [results_folder(places, study, model.name) / f"fold_{fold}" / FINAL for fold in study.folds]
    return Step(
        f"predict_{model.name}",
        f"prediction with {model.name}",
        _into(target, Command((*words, *arguments))),
        _all_predicted(places, target, checkpoints),
        trained,
    )


def _choose_postprocessing(study: Description, places: Places, model: Model, trained: tuple[str, ...]) -> Step:
    target = places.study / "postprocessing" / model.name
    folds = tuple(map(str, study.folds))
    model_of = ("-c", study.configuration, "-p", study.plans, "-tr", model.name, "-f", *folds)
    merge = Command(("nnUNetv2_accumulate_crossval_results", places.dataset, *model_of, "-o", str(_hidden(target))))
    labels = str(places.preprocessed / "gt_segmentations")
    choose = ("nnUNetv2_determine_postprocessing", "-i", str(_hidden(target)), "-ref", labels, "--remove_postprocessed")
    folder = results_folder(places, study, model.name)
    summaries = [folder / f"fold_{fold}" / "validation" / "summary.json" for fold in folds]
    return Step(
        f"choose_postprocessing_{model.name}",
        f"choice of the postprocessing of {model.name}",
        _into(target, merge, Command(choose)),
        _newer_than([target / "postprocessing.pkl", target / "postprocessing.json"], summaries),
        trained,
    )


def _postprocess(places: Places, model: Model) -> Step:
    source, target = places.predictions / model.name, places.predictions / f"{model.name}_pp"
    chosen = places.study / "postprocessing" / model.name
    described = ("-plans_json", str(source / "plans.json"), "-dataset_json", str(source / "dataset.json"))
    function = ("-pp_pkl_file", str(chosen / "postprocessing.pkl"))
    words = ("nnUNetv2_apply_postprocessing", "-i", str(source), "-o", str(_hidden(target)), *function, *described)
    # Files that mark the folder for `report` as predictions, and as postprocessed ones.
    copy = ("cp", *(str(source / name) for name in COPIED), str(_hidden(target)))
    mark = ("cp", str(chosen / "postprocessing.json"), str(_hidden(target) / POSTPROCESSED))
    return Step(
        f"postprocess_{model.name}",
        f"postprocessing of {model.name}",
        _into(target, Command(words), Command(copy), Command(mark)),
        _all_predicted(places, target, [source, chosen / "postprocessing.pkl"]),
        (f"predict_{model.name}", f"choose_postprocessing_{model.name}"),
    )


def _evaluate(places: Places, name: str, after: str) -> Step:
    folder = places.predictions / name
    table = folder.with_name(f"{name}.csv")
    words = ("nnunet_collab", "evaluate", "-p", str(folder), "-l", str(places.labels), "-o", str(table), "-np", "1")

    def is_done() -> bool:
        labels = [path for path in (places.labels or folder).iterdir() if path.is_file()]
        return _newer_than([table], [folder, *labels])()

    return Step(f"evaluate_{name}", f"scores of {name}", (Command(words),), is_done, (after,))


def _hidden(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _into(target: Path, *commands: Command) -> tuple[Command, ...]:
    """Commands that fill `_hidden(target)`, then rename it."""
    partial = str(_hidden(target))
    remove = Command(("rm", "-rf", partial, str(target)))
    return (remove, Command(("mkdir", "-p", partial)), *commands, Command(("mv", partial, str(target))))


def _all_predicted(places: Places, target: Path, made_of: Sequence[Path]) -> Callable[[], bool]:
    """Whether every test case has a segmentation in the folder that is not older than its inputs."""

    def is_done() -> bool:
        facts = json_object_or_empty(target / "dataset.json")
        ending = str(facts.get("file_ending", ""))
        cases = case_images(places.images or target, ending)
        complete = bool(ending and cases) and all((target / f"{case}{ending}").is_file() for case in cases)
        return complete and _newer_than([target], made_of)()

    return is_done


def _newer_than(made: Iterable[Path], made_of: Iterable[Path]) -> Callable[[], bool]:
    """Whether all files exist, and none is older than its inputs."""
    results, sources = list(made), list(made_of)

    def is_done() -> bool:
        try:
            oldest = min(path.stat().st_mtime_ns for path in results)
            return all(path.stat().st_mtime_ns <= oldest for path in sources)
        except FileNotFoundError:
            return False

    return is_done


def _is_json(path: Path) -> bool:
    """Whether nnU-Net, which writes the file in place, has written it completely."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
