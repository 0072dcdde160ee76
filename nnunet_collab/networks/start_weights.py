"""Let a network start from given weights: what fits by name and shape is taken, and the rest is told.

A file that does not fit the encoder is refused: a few layers that fit by chance would be no start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_collab.core.errors import CollabError, listed

LEAST_SHARE = 0.8  # of the encoder's parameters


class Fit(NamedTuple):
    """Which weights of a file fit a network.

    Attributes:
        taken: Name of each tensor of the network that fits -> the tensor of the file.
        other_shape: The tensors that have another shape in the file, with both shapes, in words.
        missing: Names of the network's tensors that the file lacks.
        unused: Names in the file that the network lacks.
        prefixes: Prefixes of the encoder's names; an empty one stands for the whole network.
        encoder: Number of the encoder's parameters.
        encoder_taken: Number of those that fit.
        dims: Spatial axes of most of the file's tensors with another shape and of the network's own, if they differ.
    """

    taken: Mapping[str, Tensor]
    other_shape: list[str]
    missing: list[str]
    unused: list[str]
    prefixes: tuple[str, ...]
    encoder: int
    encoder_taken: int
    dims: tuple[int, int] | None

    @property
    def share(self) -> float:
        """Share of the encoder's parameters that fit."""
        return self.encoder_taken / max(1, self.encoder)

    def summary(self) -> str:
        """What was taken, in one line."""
        total = len(self.taken) + len(self.other_shape) + len(self.missing)
        return f"{self.share:.1%} of the encoder's parameters, {len(self.taken)} of {total} tensors"

    def left_out(self) -> list[str]:
        """One line for each reason for which weights were not taken."""
        reasons = {
            "other shape, stays random": self.other_shape,
            "not in the file, stays random": self.missing,
            "not in the network, not used": self.unused,
        }
        return [f"{reason} ({len(names)}): {', '.join(names)}" for reason, names in reasons.items() if names]


def encoder_prefixes(network: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names of the encoder's weights, the first layer included; `("",)` if no encoder is known."""
    keys = [getattr(network, key, None) for key in ("key_to_stem", "key_to_encoder")]
    if all(isinstance(key, str) for key in keys):  # networks of dynamic_network_architectures
        return tuple(f"{key}." for key in keys)
    for name in ("encoder", "model.encoder"):  # the latter in networks of other packages
        if any(module_name == name for module_name, _ in network.named_modules()):
            return (f"{name}.",)
    return ("",)


def fit(network: nn.Module, weights: Mapping[str, Tensor]) -> Fit:
    """Compare weights with a network by name and shape. Nothing is changed.

    nnU-Net's networks have some tensors under several names; any of them is found.
    """
    names_of: dict[int, list[str]] = {}
    tensors = network.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names_of.setdefault(id(tensor), []).append(name)
    prefixes = encoder_prefixes(network)
    taken, other_shape, missing, known = {}, [], [], set()
    encoder = encoder_taken = 0
    axes: list[tuple[int, int]] = []
    for names in names_of.values():
        own, found = tensors[names[0]], [name for name in names if name in weights]
        known.update(found)
        fitting = next((weights[name] for name in found if weights[name].shape == own.shape), None)
        counts = isinstance(own, nn.Parameter) and any(name.startswith(prefixes) for name in names)
        encoder += own.numel() * counts
        if fitting is not None:
            taken[names[0]] = fitting
            encoder_taken += own.numel() * counts
        elif found:
            theirs = weights[found[0]]
            other_shape.append(f"{names[0]} (file {tuple(theirs.shape)}, here {tuple(own.shape)})")
            axes.append((theirs.ndim - 2, own.ndim - 2))
        else:
            missing.append(names[0])
    unused = [name for name in weights if name not in known]
    return Fit(taken, other_shape, missing, unused, prefixes, encoder, encoder_taken, _other_dims(axes))


def start(where: str, network: nn.Module, weights: Mapping[str, Tensor]) -> Fit:
    """Load what fits into the network.

    Args:
        where: The student and the file; it starts the message.
        network: Not wrapped. Unchanged on failure.
        weights: By name.

    Raises:
        CollabError: If less than `LEAST_SHARE` of the encoder's parameters fit; the message says what was compared.
    """
    result = fit(network, weights)
    if result.share < LEAST_SHARE:
        dims = result.dims
        encoder = ", ".join(f"{prefix}*" for prefix in result.prefixes)
        raise CollabError(
            f"{where}: at least {LEAST_SHARE:.0%} of the encoder's parameters must fit by name and shape; "
            f"{result.share:.1%} do ({result.encoder_taken} of {result.encoder} parameters of {encoder} of "
            f"{type(network).__name__}, compared with {len(weights)} tensors of the file). "
            + (f"The file's network is {dims[0]}D, this one is {dims[1]}D. " if dims else "")
            + (f"Of another shape: {listed(result.other_shape, 3)}. " if result.other_shape else "")
            + (f"Not in the file: {listed(result.missing, 3)}. " if result.missing else "")
            + (f"Only in the file: {listed(result.unused, 3)}. " if result.unused else "")
            + "Name a checkpoint of the same architecture, or set the network and the plans to those of the file."
        )
    state = network.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, weight in result.taken.items():
            state[name].copy_(weight)
    return result


def _other_dims(axes: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """Spatial axes of the convolutions in the file and in the network, if they differ."""
    different = [(theirs, ours) for theirs, ours in axes if {theirs, ours} == {2, 3}]
    return max(set(different), key=different.count) if different else None
