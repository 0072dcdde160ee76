"""A model as nnU-Net's own zip, with a model card inside."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.model_sharing.model_export import export_pretrained_model

from nnunet_collab.core.files import write_json
from nnunet_collab.core.json_files import json_object_or_empty
from nnunet_collab.core.nnunet_folders import RESULTS
from nnunet_collab.inference.model_card import CARD
from nnunet_collab.inference.model_folder import CHECKPOINT, SUMMARY, Model

_NOT_VALIDATED = {"note": "This fold was not validated."}


def write_zip(target: Path, model: Model, card: str) -> None:
    """Let nnU-Net export the model, and add the card beside its plans.json.

    nnU-Net's function writes what it finds in `nnUNet_results`. It is given a folder of links to the files of the
    model, in which the summaries of the validation name no cases and no paths.

    Args:
        target: The file to write.
        model: The model.
        card: Text of the card.
    """
    with tempfile.TemporaryDirectory() as temporary:
        results = Path(temporary)
        _link(results / model.dataset_name / model.folder.name, model)
        # It prints every step, and that there is no ensemble.
        with _results_folder(results), contextlib.redirect_stdout(io.StringIO()):
            export_pretrained_model(
                model.dataset_name,
                str(target),
                configurations=(model.configuration,),
                trainer=model.trainer,
                plans_identifier=model.plans_name,
                folds=tuple(_number(fold) for fold in model.folds),
                save_checkpoints=(CHECKPOINT,),
            )
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{model.dataset_name}/{model.folder.name}/{CARD}", card)


def _link(folder: Path, model: Model) -> None:
    """Links to the files that nnU-Net exports, and summaries without names of cases."""
    for path in sorted(model.folder.glob("*.json")):
        _link_file(path, folder / path.name)
    for fold in model.folds:
        for name in (CHECKPOINT, "progress.png"):
            _link_file(model.folder / fold / name, folder / fold / name)
        _write_summary(folder / fold / SUMMARY, json_object_or_empty(model.folder / fold / SUMMARY))
    together = "_".join(fold.removeprefix("fold_") for fold in model.folds)
    for path in sorted((model.folder / f"crossval_results_folds_{together}").glob("*")):
        if path.name == SUMMARY.name:
            _write_summary(folder / path.parent.name / path.name, json_object_or_empty(path))
        elif path.name.startswith("postprocessing."):
            _link_file(path, folder / path.parent.name / path.name)


def _write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cases = [{"metrics": case["metrics"]} for case in summary.get("metric_per_case", []) if "metrics" in case]
    write_json(path, {**summary, "metric_per_case": cases} if summary else _NOT_VALIDATED)


def _link_file(source: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(source)
    except OSError:  # Windows asks for a right to make links
        shutil.copyfile(source, link)


@contextlib.contextmanager
def _results_folder(folder: Path) -> Iterator[None]:
    """nnU-Net reads the variable whenever it needs the folder."""
    before = os.environ.get(RESULTS)
    os.environ[RESULTS] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[RESULTS]
        else:
            os.environ[RESULTS] = before


def _number(fold: str) -> int | str:
    name = fold.removeprefix("fold_")
    return int(name) if name.isdecimal() else name
