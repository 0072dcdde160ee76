"""`nnunet_collab export`: hand a model on, as nnU-Net's zip with a model card, and as ONNX."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import aside, write_json

if TYPE_CHECKING:
    from nnunet_collab.inference.model_folder import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "folder",
        metavar="RUN",
        type=Path,
        help="results folder of a published student, or of its training",
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the zip to write")
    parser.add_argument("--student", metavar="NAME", help="student of a training that published several")
    parser.add_argument(
        "-f", "--folds", metavar="FOLD", nargs="+", help="folds, e.g. 0 1, or all (default: the finished)"
    )
    parser.add_argument(
        "--license", metavar="TEXT", default="", help="license under which you give away the weights, for the card"
    )
    parser.add_argument(
        "--onnx", action="store_true", help="also write each fold's network as ONNX, and how to preprocess as JSON"
    )
    parser.add_argument(
        "--case",
        metavar="IMAGE",
        nargs="+",
        type=Path,
        help="with --onnx: compare the segmentations of this case; its raw images in the order of their channels, or "
        "its preprocessed .b2nd file",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def run(args: argparse.Namespace) -> int:
    """Check, write everything aside, compare, and give the files their names.

    Returns:
        0.

    Raises:
        CollabError: If the arguments or the model are refused, if the network cannot be exported, or if the ONNX file
            does not compute what the original does. Then nothing is written.
    """
    _check_arguments(args)
    from nnunet_collab.inference.model_folder import find_model

    model = find_model(args.folder, args.student, args.folds)
    onnx = {fold: args.output.with_name(f"{args.output.stem}_{fold}.onnx") for fold in model.folds} if args.onnx else {}
    json_file = args.output.with_name(f"{args.output.stem}_onnx.json")
    targets = [args.output, *onnx.values(), *([json_file] if onnx else [])]
    if there := [str(path) for path in targets if path.exists() and not args.overwrite]:
        raise CollabError(f"export: must not replace files; these exist: {', '.join(there)}. Write --overwrite.")
    print(f"reads   {model.folder} ({', '.join(model.folds)})", flush=True)

    from nnunet_collab.inference.model_card import model_card
    from nnunet_collab.inference.model_zip import write_zip

    folder = aside(args.output)
    folder.mkdir()
    try:
        if onnx:
            _write_onnx(model, {fold: folder / path.name for fold, path in onnx.items()}, folder / json_file.name, args)
        checkpoints = {fold: {**model.checkpoint(fold), "network_weights": None} for fold in model.folds}
        card = model_card(model, checkpoints, args.license.strip(), args.output.name)
        write_zip(folder / args.output.name, model, card)
        for path in targets:
            (folder / path.name).replace(path)
            print(f"wrote   {path}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    faults = []
    if args.output.suffix != ".zip":
        faults.append(f"-o must end with .zip; it is {args.output}")
    if not args.output.absolute().parent.is_dir():
        faults.append(f"the folder of -o must exist; {args.output.absolute().parent} does not")
    if args.case and not args.onnx:
        faults.append("--case is compared with --onnx, which is not given")
    faults += [f"--case: there is no file {path}" for path in args.case or () if not path.is_file()]
    if args.onnx:
        from nnunet_collab.inference.onnx_network import require_packages

        try:
            require_packages()
        except CollabError as error:
            faults.append(str(error).rstrip("."))
    if faults:
        raise CollabError(f"export: {'; '.join(faults)}. Correct the command.")


def _write_onnx(model: Model, files: dict[str, Path], json_file: Path, args: argparse.Namespace) -> None:
    """Export and compare the network of each fold, and describe what is around it."""
    from nnunet_collab.core.nnunet_folders import channel_names
    from nnunet_collab.inference.onnx_case import preprocessed_case, require_same, share_of_other_voxels
    from nnunet_collab.inference.onnx_description import description
    from nnunet_collab.inference.onnx_network import export_onnx, largest_difference, open_onnx, require_equal
    from nnunet_collab.inference.trained_network import trained_network

    if "previous_stage" in model.plans["configurations"][model.configuration]:
        raise CollabError(
            f"--onnx: a cascade also gets the segmentation of another model, which one file cannot hold; "
            f"{model.configuration} is one. Hand on the zip without --onnx."
        )
    channels = len(channel_names(model.dataset))
    patch = model.plans["configurations"][model.configuration]["patch_size"]
    case = preprocessed_case(args.case, model) if args.case else None
    checks: dict[str, dict[str, Any]] = {}
    outputs = 0
    for fold, path in files.items():
        network = trained_network(model, fold)
        print(f"exports {fold} as ONNX", flush=True)
        export_onnx(network, channels, patch, path)
        session = open_onnx(path)
        difference = largest_difference(network, session, channels, patch)
        require_equal(difference, fold)
        outputs = session.get_outputs()[0].shape[1]
        checks[path.name] = {"fold": fold, "largest_difference_of_logits_on_random_patches": difference}
        share = None if case is None else share_of_other_voxels(case, network, session, model)
        if share is not None:
            require_same(share)
        checks[path.name]["share_of_other_voxels_in_a_case"] = "not checked: no --case" if share is None else share
        told = (
            "no case was compared: give one with --case"
            if share is None
            else f"{share:.2g} of the case's voxels differ"
        )
        print(f"checked {fold}: logits differ by {difference:.2g} of the largest; {told}", flush=True)
    write_json(json_file, description(model, outputs, checks))
