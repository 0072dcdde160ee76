"""Preprocess images without labels, with the plans of the labeled cases, and list the preprocessed cases.

The raw images are in `imagesUn` of the raw dataset. The preprocessed ones are in a separate folder beside that of the
labeled cases, because nnU-Net treats every case in that folder as labeled. The record `unlabeled.json` in the separate
folder holds a fingerprint of everything that determines the preprocessing, so that cases of different plans are never
mixed.

All files of a case are written to another folder and then renamed, `.pkl` last. So a case with a `.pkl` is complete.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.files import write_json
from nnunet_collab.core.names import require_plain_name
from nnunet_collab.core.nnunet_folders import UNLABELED, case_images, channel_names
from nnunet_collab.data.preprocessed_files import is_whole

RECORD = "unlabeled.json"
_ENDINGS = (".b2nd", "_seg.b2nd", ".pkl")  # in the order in which they are renamed
_PARTIAL = ".partial"
# Entries of a configuration that do not affect its preprocessing. Entries from UNet_class_name on are from old plans.
_OF_TRAINING = {
    "batch_size", "patch_size", "architecture", "batch_dice", "inherits_from", "previous_stage", "next_stage",
    "median_image_size_in_voxels", "resampling_fn_probabilities", "resampling_fn_probabilities_kwargs",
    "UNet_class_name", "UNet_base_num_features", "n_conv_per_stage_encoder", "n_conv_per_stage_decoder",
    "num_pool_per_axis", "pool_op_kernel_sizes", "conv_kernel_sizes", "unet_max_num_features",
}  # fmt: skip


def preprocessing_fingerprint(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> str:
    """SHA-256 (hexadecimal) of everything that determines the preprocessing of this configuration.

    Args:
        plans: Content of a plans file.
        configuration: Name of the configuration in the plans; inheritance is resolved.
        dataset_json: Content of dataset.json.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    entry = manager.get_configuration(configuration).configuration
    content = {
        "configuration": {key: value for key, value in entry.items() if key not in _OF_TRAINING},
        "transpose_forward": manager.transpose_forward,
        "image_reader_writer": plans["image_reader_writer"],
        "foreground_intensity_properties_per_channel": manager.foreground_intensity_properties_per_channel,
        "channel_names": channel_names(dataset_json),
        "file_ending": dataset_json["file_ending"],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def unlabeled_folder(preprocessed_dataset: Path, data_identifier: str) -> Path:
    """The folder of preprocessed unlabeled cases: `<preprocessed_dataset>/<data_identifier>_imagesUn`."""
    name = require_plain_name(f"{preprocessed_dataset}, data_identifier of the plans", data_identifier, "Plan again.")
    return preprocessed_dataset / f"{name}_{UNLABELED}"


def unlabeled_cases(
    preprocessed_dataset: Path,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    raw_dataset: Path | None,
) -> list[str]:
    """Names of the unlabeled cases that training with this configuration can use, sorted.

    Args:
        preprocessed_dataset: `$nnUNet_preprocessed/DatasetXXX_Name`.
        plans: Content of the plans file.
        configuration: Name of the configuration in the plans.
        dataset_json: Content of dataset.json.
        raw_dataset: `$nnUNet_raw/DatasetXXX_Name`; None or a missing folder if the raw data are not available.

    Returns:
        The cases of imagesUn. Cases that were removed from it are not used, even if their preprocessed images exist. If
        there is no imagesUn, all preprocessed cases.

    Raises:
        CollabError: If the cases were preprocessed with other plans, or if cases of imagesUn are not preprocessed.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    identifier = PlansManager(plans).get_configuration(configuration).data_identifier
    folder = unlabeled_folder(preprocessed_dataset, identifier)
    command = f"nnunet_collab preprocess_unlabeled -d {int(preprocessed_dataset.name[7:10])} -c {configuration}"
    if plans.get("plans_name", "nnUNetPlans") != "nnUNetPlans":
        command += f" -p {plans['plans_name']}"
    refuse_other_plans(folder, preprocessing_fingerprint(plans, configuration, dataset_json), command)
    done = complete_cases(folder)
    if raw_dataset is None or not (raw_dataset / UNLABELED).is_dir():
        return done
    images = case_images(raw_dataset / UNLABELED, dataset_json["file_ending"])
    if missing := sorted(images.keys() - set(done)):
        raise CollabError(
            f"{configuration}: every case of imagesUn must be preprocessed; {len(missing)} of {len(images)} are not in "
            f"{folder}: {listed(missing)}. Run: {command} (or remove them from imagesUn)."
        )
    return sorted(images)


def refuse_other_plans(folder: Path, fingerprint: str, command: str) -> None:
    """Refuse a folder whose cases were preprocessed with other plans.

    Args:
        folder: Folder of preprocessed unlabeled cases; it may be missing.
        fingerprint: Fingerprint of the current plans.
        command: Command that preprocesses the cases again, without --overwrite.

    Raises:
        CollabError: If the folder's record has another fingerprint, or there are cases without a record.
    """
    try:
        recorded = json.loads((folder / RECORD).read_text(encoding="utf-8"))["plans"]
    except (OSError, ValueError, KeyError, TypeError):
        recorded = None
    if recorded != fingerprint and (recorded is not None or complete_cases(folder)):
        raise CollabError(
            f"{folder}: unlabeled cases must be preprocessed as the labeled ones; these were preprocessed with other "
            f"plans. Preprocess them again: {command} --overwrite"
        )


def complete_cases(folder: Path) -> list[str]:
    """Names of the cases in a folder whose files are all complete, sorted; empty if the folder is missing."""
    return [case for case in _recorded(folder) if _is_whole_case(folder, case)]


def broken_cases(folder: Path) -> list[str]:
    """Names of the cases that were complete before, but of which a file is missing, empty or truncated; sorted."""
    return [case for case in _recorded(folder) if not _is_whole_case(folder, case)]


def _recorded(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name[: -len(".pkl")] for name in names if name.endswith(".pkl"))


def _is_whole_case(folder: Path, case: str) -> bool:
    return all(is_whole(folder / f"{case}{ending}") for ending in _ENDINGS)


def preprocess_cases(
    folder: Path,
    cases: Mapping[str, Sequence[Path]],
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    *,
    processes: int,
) -> None:
    """Preprocess cases. The folder is created if it is missing, and existing files of these cases are replaced.

    Args:
        folder: `unlabeled_folder` of the configuration.
        cases: Case -> one image per channel.
        plans: Content of the plans file.
        configuration: Name of the configuration in the plans.
        dataset_json: Content of dataset.json.
        processes: Number of worker processes; with 1, this process does the work.

    Raises:
        CollabError: If a case fails. Finished cases are kept, so that a second run continues.
    """
    from tqdm import tqdm

    (folder / _PARTIAL).mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, {"plans": preprocessing_fingerprint(plans, configuration, dataset_json)})
    work = partial(preprocess_case, folder, plans=plans, configuration=configuration, dataset_json=dataset_json)
    try:
        with tqdm(total=len(cases), desc=f"Preprocessing {configuration}", unit="case", disable=None) as bar:
            for _ in _results(work, cases, processes):
                bar.update()
    finally:
        shutil.rmtree(folder / _PARTIAL, ignore_errors=True)


def preprocess_case(
    folder: Path,
    case: str,
    images: Sequence[Path],
    *,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
) -> None:
    """Preprocess one case without a label, in the format of nnU-Net's labeled cases.

    The segmentation is -1 outside the body (0 in all channels) and 0 inside. `class_locations` is empty.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    aside = folder / _PARTIAL / case
    for ending in _ENDINGS:  # files of an interrupted run; blosc2 does not overwrite a file
        Path(f"{aside}{ending}").unlink(missing_ok=True)
    preprocessor = chosen.preprocessor_class(verbose=False)
    preprocessor.run_case_save(str(aside), [str(image) for image in images], None, manager, chosen, dataset_json)
    record = Path(f"{aside}.pkl")
    properties = {**pickle.loads(record.read_bytes()), "class_locations": {}}
    record.write_bytes(pickle.dumps(properties))
    (folder / f"{case}.pkl").unlink(missing_ok=True)  # marks the old case as incomplete
    for ending in _ENDINGS:
        with open(f"{aside}{ending}", "rb+") as file:
            os.fsync(file.fileno())
        os.replace(f"{aside}{ending}", folder / f"{case}{ending}")


def _results(work: partial[None], cases: Mapping[str, Sequence[Path]], processes: int) -> Iterator[None]:
    """Process every case; yields after each one."""
    if processes == 1:
        for case, images in cases.items():
            with _named(case):
                work(case, images)
            yield
        return
    context = multiprocessing.get_context("spawn")  # a fork after torch has started its threads can hang
    with ProcessPoolExecutor(
        min(processes, len(cases)), mp_context=context, initializer=_leave_ctrl_c_to_parent
    ) as pool:
        futures = {pool.submit(work, case, images): case for case, images in cases.items()}
        try:
            for future in as_completed(futures):
                with _named(futures[future]):
                    future.result()
                yield
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C, do not start the remaining cases


def _leave_ctrl_c_to_parent() -> None:
    """Ignore Ctrl-C in a worker, so that it finishes its case and prints no traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _named(case: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # any error of nnU-Net
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CollabError(
            f"case {case}: it could not be preprocessed ({reason}). Finished cases are kept. Fix the cause and run the "
            "same command again, without --overwrite. If a process was killed, memory ran out: lower -np."
        ) from error
