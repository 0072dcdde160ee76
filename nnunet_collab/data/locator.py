"""Predict preprocessed images with a trained model, on the grid on which they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.json_files import read_json_object


class Locator:
    """A published or stock model that predicts images with the preprocessing of the model.

    Args:
        model: Results folder of the model, `<Trainer>__<plans>__<configuration>`.
        device: Device for prediction.

    Raises:
        CollabError: If the folder holds no model, or if loading its checkpoints would run code.
    """

    def __init__(self, model: Path, device: torch.device) -> None:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        fix = "Name the results folder of a trained model: .../<Trainer>__<plans>__<configuration>."
        self.plans = read_json_object(model / "plans.json", fix)
        self.dataset_json = read_json_object(model / "dataset.json", fix)
        found = sorted(model.glob("fold_*/checkpoint_final.pth"))
        if not found:
            raise CollabError(f"--locate: {model} must hold fold_*/checkpoint_final.pth; it holds none. {fix}")
        for path in found:
            checkpoints.read(path)  # refuses a file whose code nnU-Net would run
        self.predictor = nnUNetPredictor(
            use_mirroring=False, perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False
        )
        folds = tuple(_fold(path.parent.name) for path in found)
        self.predictor.initialize_from_trained_model_folder(str(model), folds, "checkpoint_final.pth")

    def segment(self, image: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Predicted labels `(*S)` of a preprocessed image `(C, *S)`."""
        logits = self.predictor.predict_logits_from_preprocessed_data(torch.from_numpy(np.asarray(image[:])))
        segmentation = self.predictor.label_manager.convert_logits_to_segmentation(logits)
        return np.asarray(segmentation)


def _fold(name: str) -> int | str:
    number = name.removeprefix("fold_")
    return int(number) if number.isdecimal() else number
