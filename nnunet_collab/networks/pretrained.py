"""ImageNet weights for the encoders of SegFormer and SemanticFPN, from the hub's cache or from the hub itself.

Licenses: the `nvidia/mit-*` weights carry the NVIDIA Source Code License for SegFormer, which allows non-commercial use
only. timm states the license of each of its weights; `mobilenetv2_100` and `resnet50` are Apache-2.0.
For images of one channel the first layer's weights are summed over RGB, for other numbers repeated and rescaled, by
timm's own function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor, nn

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.networks.segformer import SegFormer
from nnunet_collab.networks.semantic_fpn import SemanticFPN, make_backbone

_MIT_LICENCE = "NVIDIA Source Code License for SegFormer, non-commercial use only"
_OF_ITS_SOURCE = "that of the file's source"
_FIRST_LAYER = "encoder.stages.0.embedding.weight"

# Names in the public checkpoints | in the classes of transformers 5, and ours. Applied in turn.
_RENAMES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^segformer\.", ""),
        (
            r"^(?:encoder\.patch_embeddings\.(\d+)|stages\.(\d+)\.patch_embeddings)\.proj\.",
            r"encoder.stages.\1\2.embedding.",
        ),
        (
            r"^(?:encoder\.patch_embeddings\.(\d+)|stages\.(\d+)\.patch_embeddings)\.layer_norm\.",
            r"encoder.stages.\1\2.embedding_norm.",
        ),
        (r"^(?:encoder\.layer_norm\.(\d+)|stages\.(\d+)\.layer_norm)\.", r"encoder.stages.\1\2.norm."),
        (r"^(?:encoder\.block\.(\d+)|stages\.(\d+)\.blocks)\.", r"encoder.stages.\1\2.blocks."),
        (r"\.(?:layer_norm_1|layernorm_before)\.", ".attention_norm."),
        (r"\.(?:layer_norm_2|layernorm_after)\.", ".ffn_norm."),
        (r"\.attention\.(?:self\.query|q_proj)\.", ".attention.query."),
        (r"\.attention\.(?:self\.key|k_proj)\.", ".attention.key."),
        (r"\.attention\.(?:self\.value|v_proj)\.", ".attention.value."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attention.output."),
        (r"\.attention\.(?:self\.sr|sequence_reduction\.sequence_reduction)\.", ".attention.reduction."),
        (r"\.attention\.(?:self|sequence_reduction)\.layer_norm\.", ".attention.reduction_norm."),
        (r"\.mlp\.(?:dense1|fc1)\.", ".ffn.expand."),
        (r"\.mlp\.dwconv\.dwconv\.", ".ffn.depthwise."),
        (r"\.mlp\.(?:dense2|fc2)\.", ".ffn.contract."),
        (r"^decode_head\.(?:linear_c|linear_projections)\.(\d+)\.proj\.", r"decoder.fusion.projections.\1."),
        (r"^decode_head\.linear_fuse\.", "decoder.fusion.fuse."),
        (r"^decode_head\.batch_norm\.", "decoder.fusion.norm."),
        (r"^decode_head\.classifier\.", "decoder.classifier."),
    )
)


class PretrainedUnavailable(CollabError):
    """There are no pretrained weights for this network, or they cannot be loaded; the message says why."""


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a SegFormer of `transformers`, under the names of our SegFormer.

    Args:
        state: State dict of `SegformerForSemanticSegmentation` or `SegformerForImageClassification`, under the names of
            the public checkpoints or those of `transformers` 5. The ImageNet classifier is left out.

    Returns:
        State dict for `SegFormer(..., head_norm="batch")`, or its `encoder.` part if `state` has no decoder.
    """
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("classifier."):
            continue
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        ours[name] = value
    for name in [name for name in ours if ".attention.key." in name]:
        parts = ours.pop(name), ours.pop(name.replace(".key.", ".value."))
        ours[name.replace(".key.", ".key_value.")] = torch.cat(parts)
    return ours


def load_imagenet_weights(network: nn.Module, file: Path | None = None) -> str:
    """Replace the random weights of the encoder by ImageNet weights; the decoder keeps its own.

    Args:
        network: A `SegFormer` in two dimensions or a `SemanticFPN`, not compiled and not wrapped. Unchanged on failure.
        file: Local file of the weights, as the hub has them: `.safetensors`, or else written by `torch.save`. No code
            of it is run. None for the hub's.

    Returns:
        One line for the log and the checkpoint: what was loaded, and its license.

    Raises:
        PretrainedUnavailable: If there are no weights for this network; if they are neither cached nor downloadable; or
            if the file is none, or is one of another network.
    """
    if isinstance(network, SegFormer):
        return _load_mit(network, file)
    if isinstance(network, SemanticFPN):
        return _load_timm(network, file)
    raise PretrainedUnavailable(
        "pretrained weights: there are ImageNet weights for SegFormer and SemanticFPN only; found "
        f"{type(network).__name__}. Set 'pretrained' of this student to false."
    )


def _load_mit(network: SegFormer, file: Path | None) -> str:
    if network.dims != 2:
        raise PretrainedUnavailable(
            f"pretrained weights: ImageNet weights are for 2D networks; found a SegFormer in {network.dims}D. "
            "Train it from random weights, or choose the 2d configuration."
        )
    from timm.models import adapt_input_conv  # here, since most trainings need no timm

    repository = f"nvidia/mit-{network.variant}"
    try:
        loaded = from_huggingface(_read(repository) if file is None else _read_file(file))
        loaded[_FIRST_LAYER] = adapt_input_conv(network.input_channels, loaded[_FIRST_LAYER])
    except Exception as error:  # for any error of the hub's client or of a damaged file, the weights are unavailable
        raise _unusable(file, repository, error) if file else _unavailable(repository, error) from error
    own = {name: value for name, value in network.state_dict().items() if name.startswith("encoder.")}
    # Plans with few or anisotropic poolings need kernels of other sizes, which no checkpoint has.
    fitting = {name: value for name, value in loaded.items() if name in own and value.shape == own[name].shape}
    if file is not None and (strange := [name for name in own if name not in loaded]):
        raise _unusable(file, repository, KeyError(listed(strange)))
    network.load_state_dict(fitting, strict=False)
    line = f"{file or repository}: {len(fitting)} of the encoder's {len(own)} tensors, pretrained on ImageNet-1k"
    if len(fitting) < len(own):
        line += " (the others stay random: the plans' strides need kernels of other sizes)"
    return f"{line}; license: {_OF_ITS_SOURCE if file else _MIT_LICENCE}"


def _read(repository: str) -> Mapping[str, Tensor]:
    names = ("model.safetensors", "pytorch_model.bin")
    # The cache first, under both names: on a node without network, only the cache can have the file.
    cached = [try_to_load_from_cache(repository, name) for name in names]
    path = next((p for p in cached if isinstance(p, str)), None) or _fetch(repository, names)
    if path.endswith(".safetensors"):
        return cast(Mapping[str, Tensor], safetensors.torch.load_file(path))
    return cast(Mapping[str, Tensor], checkpoints.read(Path(path), "weights"))


def _fetch(repository: str, names: tuple[str, ...]) -> str:
    for name in names[:-1]:
        try:
            return str(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:  # no connection: another name would not help
            raise
        except EntryNotFoundError:  # the repository has no file of this name
            continue
    return str(hf_hub_download(repository, names[-1]))


def _load_timm(network: SemanticFPN, file: Path | None) -> str:
    name = f"timm/{network.backbone}"
    try:
        weights = None if file is None else _read_file(file)
        source = make_backbone(network.backbone, network.input_channels, pretrained=True, weights=weights)
    except Exception as error:  # of timm, of the hub's client or of a damaged file
        raise _unusable(file, name, error) if file else _unavailable(name, error) from error
    if file is not None:
        counters = ".num_batches_tracked"  # older files lack them
        own = [key for key in source.state_dict() if not key.endswith(counters)]
        if strange := [key for key in own if key not in (weights or {})]:  # timm ignores them
            raise _unusable(file, name, KeyError(listed(strange)))
    network.encoder.load_state_dict(source.state_dict())
    config: Mapping[str, object] = source.pretrained_cfg  # type: ignore[assignment]
    license_of = _OF_ITS_SOURCE if file else config.get("license") or "see its model card"
    source_name = file or config.get("hf_hub_id") or name
    return f"{source_name}: the whole encoder, pretrained on ImageNet; license: {license_of}"


def _read_file(path: Path) -> dict[str, Tensor]:
    """The weights in a local file, in a dictionary of their own; `state_dict` inside of it is opened."""
    if path.suffix == ".safetensors":
        return dict(safetensors.torch.load_file(path))
    content = checkpoints.read(path, "weights")
    inner = content.get("state_dict", content)
    if not isinstance(inner, Mapping) or not inner or not all(isinstance(value, Tensor) for value in inner.values()):
        raise ValueError("it must hold tensors by name")
    return dict(inner)


def _unusable(file: Path, name: str, error: Exception) -> PretrainedUnavailable:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return PretrainedUnavailable(
        f"pretrained weights: {file} must be a file with the weights of {name}; found {reason}. Download it from there "
        f"(model.safetensors or pytorch_model.bin) and set 'pretrained' of this student to its path."
    )


def _unavailable(repository: str, error: Exception) -> PretrainedUnavailable:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return PretrainedUnavailable(
        f"pretrained weights: {repository} must be in the Hugging Face cache or downloadable; found {reason}. "
        "Download it once on a machine with network, and set HF_HOME to a folder that this machine can read. "
        "HF_HUB_OFFLINE=1 skips the wait for a missing network."
    )
