"""Compare the segmentation of one case by a network and by its ONNX file, with nnU-Net's own sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from torch import nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.image_io import read_volume, read_whole
from nnunet_collab.core.nnunet_folders import channel_names
from nnunet_collab.inference.model_folder import Model
from nnunet_collab.inference.onnx_network import OnnxNetwork

TOLERANCE = 1e-4  # share of voxels
_PREPROCESSED = ".b2nd"


def preprocessed_case(files: Sequence[Path], model: Model) -> NDArray[np.float32]:
    """A case as the network gets it, `(C, *S)`.

    Args:
        files: One preprocessed file of nnU-Net (`.b2nd`), or the raw images of a case, one per channel.
        model: The model, whose plans say how to preprocess.

    Raises:
        CollabError: If the files are not a case for this model.
    """
    wanted = len(channel_names(model.dataset))
    if files[0].suffix == _PREPROCESSED and len(files) == 1:
        image = read_whole(files[0], lambda path: np.asarray(blosc2.open(urlpath=path, mode="r")[:], np.float32))
        if image.ndim != 4 or len(image) != wanted:
            raise CollabError(
                f"{files[0]}: must hold a preprocessed image of {wanted} channels; its shape is {image.shape}. "
                "Name another case."
            )
        return image
    ending = model.dataset["file_ending"]
    if len(files) != wanted or not all(path.name.endswith(ending) for path in files):
        raise CollabError(
            f"--case: must be one {_PREPROCESSED} file, or the {wanted} raw images of a case in the order of their "
            f"channels, which end with {ending}; it is {' '.join(map(str, files))}. Correct it."
        )
    plans = PlansManager(model.plans)
    configuration = plans.get_configuration(model.configuration)
    for path in files:
        read_volume(path, plans.image_reader_writer_class, label=False)  # refuses incomplete files
    preprocessor = configuration.preprocessor_class(verbose=False)
    image, _, _ = preprocessor.run_case([str(path) for path in files], None, plans, configuration, model.dataset)
    return np.asarray(image, np.float32)


def share_of_other_voxels(image: NDArray[np.float32], network: nn.Module, session: Any, model: Model) -> float:
    """The share of voxels of a preprocessed case that get another label from the ONNX file.

    Args:
        image: `(C, *S)`, from `preprocessed_case`.
        network: The original, in evaluation mode, on the CPU.
        session: The ONNX file, from `open_onnx`.
        model: The model.
    """
    labels = [_segmentation(image, net, model) for net in (network, OnnxNetwork(session))]
    return float(np.mean(labels[0] != labels[1]))


def require_same(share: float) -> None:
    """Raise a `CollabError` if `share_of_other_voxels` exceeds the tolerance."""
    if share > TOLERANCE:
        raise CollabError(
            f"--onnx: the exported network must give the same segmentation but for {TOLERANCE:g} of the voxels; "
            f"{share:.2g} of them differ. The file is not kept. Try another version of torch or onnxruntime."
        )


def _segmentation(image: NDArray[np.float32], network: nn.Module, model: Model) -> NDArray[Any]:
    plans = PlansManager(model.plans)
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(
        network, plans, plans.get_configuration(model.configuration), None, model.dataset, "", None
    )
    with torch.no_grad():
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image))
    segmentation = plans.get_label_manager(model.dataset).convert_logits_to_segmentation(logits.float())
    return np.asarray(segmentation)
