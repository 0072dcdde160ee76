"""A network as ONNX, compared with the original on random patches."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_collab.core.errors import CollabError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUT, OUTPUT = "image", "logits"
TOLERANCE = 1e-4  # of the largest logit, and at least of 1
_BATCHES = (1, 3)  # sizes with which the dynamic batch is tried; the network is exported with 2


def require_packages() -> None:
    """Raise a `CollabError` unless the packages of the extra `onnx` are installed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise CollabError(
            f"--onnx: needs the packages {', '.join(PACKAGES)}; not installed: {', '.join(missing)}. "
            f"Write: pip install {' '.join(missing)}"
        )


def export_onnx(network: nn.Module, channels: int, patch_size: Sequence[int], path: Path) -> None:
    """Write the network as ONNX: input `image`, `(B, C_in, *S)` float32, output `logits`, `(B, C, *S)`; any B.

    Args:
        network: Network in evaluation mode, on the CPU.
        channels: Number of input channels.
        patch_size: Size of the patch; it is fixed in the file.
        path: File to write.

    Raises:
        CollabError: If torch cannot export the network.
    """
    example = torch.zeros((2, channels, *patch_size))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names inside torch and onnxscript
            torch.onnx.export(
                network,
                (example,),
                str(path),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever its parts raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CollabError(
            f"--onnx: torch must be able to export the network; it cannot for {type(network).__name__} "
            f"({type(error).__name__}: {lines[0][:300] if lines else 'no reason'}). Hand on the zip without --onnx."
        ) from error


def open_onnx(path: Path) -> Any:
    """A session of onnxruntime on the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_onnx(session: Any, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits `(B, C, *S)` of images `(B, C_in, *S)`."""
    logits: NDArray[np.float32] = session.run([OUTPUT], {INPUT: image})[0]
    return logits


@torch.no_grad()
def largest_difference(network: nn.Module, session: Any, channels: int, patch_size: Sequence[int]) -> float:
    """The largest difference of logits on random patches, relative to the largest logit (at least to 1).

    The patches are normal noise, in batches of 1 and 3.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in _BATCHES:
        image = torch.randn((size, channels, *patch_size), generator=generator)
        expected = network(image).numpy()
        scale = max(1.0, float(np.abs(expected).max()))
        worst = max(worst, float(np.abs(run_onnx(session, image.numpy()) - expected).max()) / scale)
    return worst


def require_equal(difference: float, what: str) -> None:
    """Raise a `CollabError` if `largest_difference` exceeds the tolerance, or is not a number."""
    if not difference <= TOLERANCE:
        raise CollabError(
            f"--onnx: the exported network must give the logits of {what} within {TOLERANCE:g}; the largest difference "
            f"is {difference:.2g}. The file is not kept. Try another version of torch or onnxruntime."
        )


class OnnxNetwork(nn.Module):
    """A session of onnxruntime in the place of a network, so that nnU-Net's sliding window can use it."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, C, *S)` of `(B, C_in, *S)`."""
        return torch.from_numpy(run_onnx(self.session, image.contiguous().cpu().numpy()))
