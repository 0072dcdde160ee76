"""The model card: what a model is, what it was trained on, how well it did, and how to predict with it. In Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import nnunet_collab
from nnunet_collab.core.checkpoint import KEY
from nnunet_collab.core.json_files import json_object_or_empty
from nnunet_collab.core.nnunet_folders import channel_names
from nnunet_collab.inference.model_folder import SUMMARY, Model

CARD = "MODEL_CARD.md"
RANDOM = "random initialization"
# Entries of dataset.json with which a dataset describes itself; all are optional.
_DESCRIPTION = ("name", "description", "reference", "licence", "license", "release")


def model_card(model: Model, checkpoints: Mapping[str, Mapping[str, Any]], license_text: str, zip_name: str) -> str:
    """The text of the card.

    Args:
        model: The model.
        checkpoints: Fold -> content of its final checkpoint; the weights are not used.
        license_text: The license that the author gives the weights; empty if none was stated.
        zip_name: Name of the zip, for the commands.

    Returns:
        Markdown. It holds no names of cases, and of paths only the last part.
    """
    sections = (
        _head(model),
        _data(model),
        _labels(model),
        _training(model, checkpoints),
        _scores(model),
        _license(checkpoints, license_text),
        _prediction(model, zip_name),
    )
    return "\n".join(line for section in sections for line in (*section, ""))


def _head(model: Model) -> Iterator[str]:
    yield f"# {model.trainer} on {model.dataset_name}, {model.configuration}"
    yield ""
    yield "A model of nnU-Net v2 that segments images. This card was written by `nnunet_collab export`, version "
    yield f"{nnunet_collab.__version__}, from the files of the training; its author may add to it."
    yield ""
    yield "**For research. This is not a medical device**, and nobody has checked whether it may guide a therapy."


def _data(model: Model) -> Iterator[str]:
    dataset = model.dataset
    told = {key: dataset[key] for key in _DESCRIPTION if isinstance(dataset.get(key), str) and dataset[key].strip()}
    entry = model.plans["configurations"][model.configuration]
    yield "## Data"
    yield ""
    yield from _table(
        ("", "value"),
        [
            ("dataset", model.dataset_name),
            *((key, " ".join(text.split())) for key, text in told.items()),
            ("labeled cases", dataset.get("numTraining", "not stated")),
            ("channels", ", ".join(f"{number}: {name}" for number, name in channel_names(dataset).items())),
            ("file ending", dataset["file_ending"]),
            ("voxel spacing in which it works, mm", _numbers(entry.get("spacing"))),
        ],
    )


def _labels(model: Model) -> Iterator[str]:
    yield "## Labels"
    yield ""
    rows = [(name, _numbers(value)) for name, value in model.dataset["labels"].items()]
    yield from _table(("class", "value in the label map"), rows)
    if order := model.dataset.get("regions_class_order"):
        yield ""
        yield f"Regions overlap. They are written in this order, later ones over earlier ones: {_numbers(order)}."


def _training(model: Model, checkpoints: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    entry = model.plans["configurations"][model.configuration]
    first = next(iter(checkpoints.values()))
    record = first.get(KEY, {})
    yield "## Training"
    yield ""
    rows = [
        ("trainer", record.get("trained_by", first.get("trainer_name", "not stated"))),
        ("student", record.get("student", "-")),
        ("network", model.network_class or "not stated"),
        ("patch, voxels", _numbers(entry.get("patch_size"))),
        ("folds", ", ".join(checkpoints)),
        ("epochs", ", ".join(str(c.get("current_epoch", "?")) for c in checkpoints.values())),
    ]
    if record:
        rows += [
            ("iterations", ", ".join(str(c[KEY].get("iteration", "?")) for c in checkpoints.values())),
            ("seed", record.get("settings", {}).get("seed", "not stated")),
            ("weights started from", "; ".join(_origins(checkpoints))),
        ]
    yield from _table(("", "value"), rows)
    if settings := record.get("settings"):
        yield from ("", "All settings:", "", "```json", json.dumps(_without_paths(settings), indent=1), "```")


def _scores(model: Model) -> Iterator[str]:
    yield "## Scores"
    yield ""
    summaries = {fold: json_object_or_empty(model.folder / fold / SUMMARY) for fold in model.folds}
    scored = {fold: content["mean"] for fold, content in summaries.items() if isinstance(content.get("mean"), dict)}
    if not scored:
        yield "The folder of the model holds no validation, so nothing is known about its quality."
        return
    names = _names_of_keys(model.dataset["labels"])
    keys = list(next(iter(scored.values())))
    rows = []
    for fold, mean in scored.items():
        values = [mean.get(key, {}).get("Dice") for key in keys]
        overall = summaries[fold].get("foreground_mean", {}).get("Dice")
        cases = len(summaries[fold].get("metric_per_case", []))
        rows.append((fold, cases, *(_dice(value) for value in (*values, overall))))
    yield from _table(("fold", "cases", *(names.get(key, key) for key in keys), "mean"), rows)
    yield ""
    yield "Mean Dice of the validation cases of each fold, as nnU-Net computed it after the training. These cases were"
    yield "not trained on (but in `fold_all`). They are no independent test: other hospitals and scanners may differ."
    if missing := [fold for fold in model.folds if fold not in scored]:
        yield f"Not validated: {', '.join(missing)}."


def _license(checkpoints: Mapping[str, Mapping[str, Any]], license_text: str) -> Iterator[str]:
    origins = _origins(checkpoints)
    yield "## License of the weights"
    yield ""
    yield license_text or "The author of the model has not stated one. Ask before you use or pass on the weights."
    yield ""
    if not origins:
        yield "It is not recorded from which weights the training started."
    elif origins == [RANDOM]:
        yield "The training started from random weights, so no license of other weights applies."
    else:
        yield f"The training started from: {'; '.join(origins)}. The license of those weights applies, too."
    yield ""
    yield "The terms of the training data apply, too. The license of the software is not that of the weights."


def _prediction(model: Model, zip_name: str) -> Iterator[str]:
    folds = " ".join(fold.removeprefix("fold_") for fold in model.folds)
    number = int(model.dataset_name[len("Dataset") :][:3])
    yield "## How to predict"
    yield ""
    if model.predicts_without_this_package:
        yield "nnU-Net v2 alone is enough, because the network is one of its own (`pip install nnunetv2`)."
    else:
        yield f"nnU-Net v2 and the package that holds `{model.network_class}` must be installed. For networks of"
        yield "nnunet_collab, that is `pip install` of nnunet_collab; its trainers need not be made known to nnU-Net."
    yield f"Images are named `CASE_0000{model.dataset['file_ending']}`, one file per channel."
    yield ""
    yield "```"
    yield f"nnUNetv2_install_pretrained_model_from_zip {zip_name}"
    yield (
        f"nnUNetv2_predict -d {number} -c {model.configuration} -p {model.plans_name} -tr {model.trainer} -f {folds} "
        f"-i IMAGES -o OUT"
    )
    yield "```"


def _origins(checkpoints: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """From which weights the student of each fold started, without repetition."""
    found = []
    for content in checkpoints.values():
        record = content.get(KEY, {})
        origin = record.get("weights_from", {}).get(record.get("student"))
        if origin and origin not in found:
            found.append(origin)
    return found


def _names_of_keys(labels: Mapping[str, Any]) -> dict[str, str]:
    """The keys of nnU-Net's summary.json, numbers or tuples of numbers as text, and the names of their classes."""
    return {str(tuple(value) if isinstance(value, list) else value): name for name, value in labels.items()}


def _without_paths(value: Any) -> Any:
    """The same settings; of absolute paths only the last part."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    return PurePosixPath(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _dice(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) and value == value else "-"


def _numbers(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_numbers(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
