"""Networks of other packages (MONAI, one's own), built by dotted path so that nnU-Net plans can describe them."""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nnunet_collab.core.errors import CollabError

# How common packages name the two numbers that only the dataset knows.
INPUT_NAMES = ("input_channels", "in_channels", "in_chans", "n_channels")
OUTPUT_NAMES = ("num_classes", "out_channels", "n_classes", "classes")


class ForeignNetwork(nn.Module):
    """A network class found by its dotted path.

    Args:
        input_channels: Of the image.
        num_classes: Number of output channels.
        deep_supervision: Must be possible to ignore: a foreign network has one output.
        path: Dotted path of the class, e.g. `monai.networks.nets.SwinUNETR`.
        kwargs: Further keywords of its constructor.

    Raises:
        CollabError: If the class cannot be found, or its constructor does not take the keywords.
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
        except Exception as error:  # a foreign constructor fails as it likes
            raise CollabError(
                f"network {path}: its constructor must take {sorted({**channels, **kwargs})}; it says: "
                f"{str(error) or type(error).__name__}. "
                f"Its parameters are {', '.join(names)}; set them under 'arch' in the student's settings."
            ) from error

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, C, *S)` of `(B, C_in, *S)`; of a network with several outputs, the first."""
        output = self.model(image)
        logits: Tensor = output[0] if isinstance(output, (list, tuple)) else output
        return logits


def _locate(path: str) -> Any:
    try:
        cls = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise CollabError(f"network {path}: importing it failed: {error}. Mend that import first.") from error
    if not callable(cls):
        raise CollabError(f"network {path}: there is no such class. Check the dotted path and that it is installed.")
    return cls


def _pick(path: str, parameters: Mapping[str, Any], candidates: tuple[str, ...]) -> str:
    for name in candidates:
        if name in parameters:
            return name
    raise CollabError(
        f"network {path}: its constructor must have a parameter called one of {', '.join(candidates)}; "
        f"it has {', '.join(parameters)}. Wrap the class in one of your own that does."
    )
