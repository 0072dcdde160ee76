"""Networks of other packages (such as MONAI, or your own), built by dotted path so that plans can describe them."""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nnunet_collab.core.errors import CollabError

# Names in common packages of the two parameters that depend on the dataset.
INPUT_NAMES = ("input_channels", "in_channels", "in_chans", "n_channels")
OUTPUT_NAMES = ("num_classes", "out_channels", "n_classes", "classes")


class ForeignNetwork(nn.Module):
    """A network class found by its dotted path.

    Args:
        input_channels: Number of channels of the image.
        num_classes: Number of output channels.
        deep_supervision: Ignored: a foreign network has one output.
        path: Dotted path of the class, e.g. `monai.networks.nets.SwinUNETR`.
        kwargs: Additional keywords of its constructor.

    Raises:
        CollabError: If the class cannot be found, or its constructor does not accept the keywords.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        path: str,
        kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__()
        cls = _locate(path)
        names = inspect.signature(cls).parameters
        channels = {
            _pick(path, names, INPUT_NAMES): input_channels,
            _pick(path, names, OUTPUT_NAMES): num_classes,
        }
        try:
            self.model = cls(**channels, **kwargs)
        except Exception as error:  # the constructor may raise anything
            raise CollabError(
                f"network {path}: its constructor must accept {sorted({**channels, **kwargs})}; error: "
                f"{str(error) or type(error).__name__}. "
                f"Its parameters are {', '.join(names)}; set them under 'arch' in the student's settings."
            ) from error

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, C, *S)` of `(B, C_in, *S)`; the first output of a network with several."""
        output = self.model(image)
        logits: Tensor = output[0] if isinstance(output, (list, tuple)) else output
        return logits


def _locate(path: str) -> Any:
    try:
        cls = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise CollabError(f"network {path}: importing it failed: {error}. Fix that import first.") from error
    if not callable(cls):
        raise CollabError(f"network {path}: there is no such class. Check the dotted path and that it is installed.")
    return cls


def _pick(path: str, parameters: Mapping[str, Any], candidates: tuple[str, ...]) -> str:
    for name in candidates:
        if name in parameters:
            return name
    raise CollabError(
        f"network {path}: its constructor must have a parameter called one of {', '.join(candidates)}; "
        f"it has {', '.join(parameters)}. Wrap the class in your own class that has such parameters."
    )
