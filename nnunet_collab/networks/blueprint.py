"""From a student's settings to a blueprint that nnU-Net plans can hold, and from the blueprint to the network.

A blueprint is the `architecture` entry of a plans file: an importable class and the keywords to build it with.
Published students carry it in their plans.json, so that nnU-Net alone rebuilds them.
"""

from __future__ import annotations

import importlib.util
import inspect
import pydoc
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_collab.core.errors import CollabError
from nnunet_collab.networks.primus_entry import PRIMUS, STOCK, primus_entry

Blueprint = dict[str, Any]

PLANS = "plans"


class NamedNetwork(NamedTuple):
    """A network of this package that settings choose by name.

    Attributes:
        path: Dotted path of its class.
        arch: Keywords that the name stands for.
        takes_strides: Whether its strides are those of the plans.
        dims: Number of spatial axes it is made for; None for two and three.
    """

    path: str
    arch: Mapping[str, Any] = {}
    takes_strides: bool = False
    dims: int | None = None


SEGFORMER = "nnunet_collab.networks.segformer.SegFormer"
SEMANTIC_FPN = "nnunet_collab.networks.semantic_fpn.SemanticFPN"
NAMED: Mapping[str, NamedNetwork] = {
    **{f"segformer_b{n}": NamedNetwork(SEGFORMER, {"variant": f"b{n}"}, takes_strides=True) for n in range(6)},
    "cmaformer": NamedNetwork("nnunet_collab.networks.cmaformer.CMAformer", takes_strides=True),
    "fpn_mobilenetv2": NamedNetwork(SEMANTIC_FPN, {"backbone": "mobilenetv2_100"}, dims=2),
    "fpn_resnet50": NamedNetwork(SEMANTIC_FPN, {"backbone": "resnet50"}, dims=2),
    **{name: NamedNetwork(STOCK, arch, dims=3) for name, arch in PRIMUS.items()},
}
NETWORKS = (PLANS, *NAMED)
_CONFIGURATIONS = {2: "2d", 3: "3d_fullres"}


def make_blueprint(
    student: str, network: str, arch: Mapping[str, Any], planned: Blueprint, patch_size: Sequence[int]
) -> Blueprint:
    """The plans' `architecture` entry of a student.

    Args:
        student: Name of the student, for messages.
        network: `plans` (the network that the plans describe), a name of `NETWORKS`, or the dotted path of any network
            class; see `networks.foreign`.
        arch: Additional keywords of the network's constructor, JSON values.
        planned: The `architecture` entry of the plans.
        patch_size: Patch size of the configuration, for the placeholders of foreign networks.

    Raises:
        CollabError: If the network is unknown or cannot take the configuration.
    """
    if network == PLANS:
        return {**planned, "arch_kwargs": {**planned["arch_kwargs"], **arch}}
    if network in NAMED:
        return _named_entry(student, network, arch, planned, patch_size)
    if "." in network:
        placeholders = {"$dims": len(patch_size), "$patch_size": list(patch_size)}
        kwargs = {
            key: placeholders.get(value, value) if isinstance(value, str) else value for key, value in arch.items()
        }
        _check_importable(student, network)
        return _entry("nnunet_collab.networks.foreign.ForeignNetwork", {"path": network, "kwargs": kwargs})
    raise CollabError(
        f"student {student!r}: network must be one of {', '.join(NETWORKS)}, or the dotted path of a class; "
        f"got {network!r}."
    )


def build_network(blueprint: Blueprint, input_channels: int, num_outputs: int, *, deep_supervision: bool) -> nn.Module:
    """Build the network as nnU-Net does, its initialization included.

    Raises:
        CollabError: If the constructor does not accept the keywords.
    """
    try:
        return get_network_from_plans(  # type: ignore[no-any-return]
            blueprint["network_class_name"],
            blueprint["arch_kwargs"],
            blueprint["_kw_requires_import"],
            input_channels,
            num_outputs,
            allow_init=True,
            deep_supervision=deep_supervision if _takes_deep_supervision(blueprint) else None,
        )
    except CollabError:
        raise
    except Exception as error:  # torch raises RuntimeError for a negative size; other packages may raise anything
        raise CollabError(
            f"network {blueprint['network_class_name']}: its constructor must accept the keywords "
            f"{sorted(blueprint['arch_kwargs'])}; error: {error}. Correct 'arch' in the student's settings."
        ) from error


def _takes_deep_supervision(blueprint: Blueprint) -> bool:
    """Whether nnU-Net can tell the constructor how many outputs it wants; Primus has no such argument."""
    network = pydoc.locate(blueprint["network_class_name"])
    if network is None:
        return True  # nnU-Net looks further for classes that have moved
    parameters = inspect.signature(network).parameters  # type: ignore[arg-type]
    return "deep_supervision" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def unet_encoder_stage(strides: Sequence[Sequence[int]], patch_size: Sequence[int], wanted: Sequence[int]) -> int:
    """The stage of a plans-built UNet encoder whose map is nearest in size to another student's.

    Args:
        strides: Per stage and axis, from the plans.
        patch_size: Size of the input.
        wanted: Size of the other student's encoder output.

    Returns:
        Index into `network.encoder.stages`; the deeper one of two equally near.
    """
    size = [float(n) for n in patch_size]
    distance: list[float] = []
    for stage in strides:
        size = [n / s for n, s in zip(size, stage, strict=True)]
        distance.append(sum(abs(n - w) / w for n, w in zip(size, wanted, strict=True)))
    return min(range(len(distance)), key=lambda stage: (round(distance[stage], 6), -stage))


def is_unet(network: nn.Module) -> bool:
    """Whether the network is one of nnU-Net's UNets, with stages in its encoder and its decoder."""
    return all(hasattr(getattr(network, part, None), "stages") for part in ("encoder", "decoder"))


def _named_entry(
    student: str, network: str, arch: Mapping[str, Any], planned: Blueprint, patch_size: Sequence[int]
) -> Blueprint:
    named, dims = NAMED[network], len(patch_size)
    if named.dims not in (None, dims):
        others = ", ".join((PLANS, *(name for name, other in NAMED.items() if other.dims in (None, dims))))
        raise CollabError(
            f"student {student!r}: {network} is a {named.dims}D network; got a patch of {list(patch_size)}. "
            f"Train the {_CONFIGURATIONS[named.dims]} configuration, or choose one of {others}."
        )
    if network in PRIMUS:
        return _entry(*primus_entry(student, network, arch, patch_size))
    if not named.takes_strides:
        return _entry(named.path, {**named.arch, **arch})
    strides = {**planned["arch_kwargs"], **arch}.get("strides")
    if strides is None:
        raise CollabError(
            f"student {student!r}: {network} takes its strides from the plans, but their "
            f'{planned["network_class_name"]} has none. Give arch {{"strides": ...}}, or use plans of a UNet.'
        )
    return _entry(named.path, {**named.arch, "strides": strides, **arch})


def _entry(path: str, kwargs: dict[str, Any]) -> Blueprint:
    return {"network_class_name": path, "arch_kwargs": kwargs, "_kw_requires_import": []}


def _check_importable(student: str, path: str) -> None:
    package = path.split(".")[0]
    if package not in sys.modules and (not package or importlib.util.find_spec(package) is None):
        raise CollabError(
            f"student {student!r}: network {path!r} must be importable; package {package!r} is not installed. "
            f"Install it into this environment, or correct the path."
        )
