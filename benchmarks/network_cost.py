"""Parameters, operations and memory of CMAformer and SegFormer against the plans' UNet, on nnU-Net's ACDC plans.

Everything is counted on tensors without data, so it needs no GPU and little time: floating-point operations (two per
multiply-add) of a forward pass, and the peak memory of the tensors of a training step (weights, activations for the
backward pass, gradients; without the optimizer's state). One patch, float32; kernels' workspaces do not count.

    python benchmarks/network_cost.py
"""

from __future__ import annotations

from typing import Any

import harness
import torch
from loss_memory import LiveBytes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_collab.networks.blueprint import PLANS, build_network, make_blueprint

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "plans' UNet": (PLANS, {}),
    "CMAformer": ("cmaformer", {}),
    "  no ViT block": ("cmaformer", {"use_vit_block": False}),
    "  no gates": ("cmaformer", {"use_cross_attention": False}),
    "  position bias": ("cmaformer", {"rel_pos_bias": True}),
    "SegFormer B0": ("segformer_b0", {}),
    "SegFormer B2": ("segformer_b2", {}),
}


def count(network: str, arch: dict[str, Any], scale: str) -> tuple[float, float, float]:
    """Millions of parameters, GFLOP of a forward pass, and GiB of a training step, for one patch."""
    patch = harness.SCALES[scale]["patch"]
    entry = make_blueprint("S", network, arch, harness.planned_architecture(scale), patch)
    with torch.device("meta"):
        built = build_network(entry, 1, harness.CLASSES, deep_supervision=True)
    with FakeTensorMode():
        for module in built.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
        weights = sum(p.numel() for p in built.parameters())
        image = torch.zeros(1, 1, *patch)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            built(image)
        with LiveBytes() as memory:
            outputs: list[Tensor] = built(image)
            sum((logits.log_softmax(1)[:, 0].mean() for logits in outputs), torch.zeros(())).backward()
    return weights / 1e6, counter.get_total_flops() / 1e9, (memory.peak + 4 * weights) / 2**30


def main() -> None:
    """Count and print the tables."""
    columns = ("M parameters", "GFLOP forward", "GiB training")
    for scale in ("2d", "3d"):
        print(f"{scale}: one patch of {harness.SCALES[scale]['patch']}")
        print(f"{'network':18}" + "".join(f"{column:>16}{'ratio':>8}" for column in columns))
        reference = count(*NETWORKS["plans' UNet"], scale)
        for name, (network, arch) in NETWORKS.items():
            values = count(network, arch, scale)
            pairs = zip(values, reference, strict=True)
            print(f"{name:18}" + "".join(f"{value:16.2f}{value / unet:8.2f}" for value, unet in pairs))


if __name__ == "__main__":
    main()
