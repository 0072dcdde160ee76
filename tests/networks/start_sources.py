"""Checkpoints to start from in every layout, made by hand: nnU-Net's, a run's of this package, and nnssl's."""

from __future__ import annotations

import torch
from tiny import STRIDES_3D, unet

from nnunet_collab.networks.blueprint import build_network, make_blueprint

PATCH_3D = (8, 16, 16)
TINY_PRIMUS = {"embed_dim": 24, "eva_depth": 2, "eva_numheads": 2}


def residual(channels=1, heads=3, seed=1):
    """A ResEnc UNet in 3D, as nnU-Net's ResEnc planners describe it, with weights of a seed."""
    torch.manual_seed(seed)
    return build_network(unet(STRIDES_3D, residual=True), channels, heads, deep_supervision=True)


def primus(channels=1, heads=3, seed=1, patch=PATCH_3D):
    """A Primus that is small enough for tests, with weights of a seed."""
    torch.manual_seed(seed)
    entry = make_blueprint("P", "primus_m", TINY_PRIMUS, unet(STRIDES_3D), patch)
    network = build_network(entry, channels, heads, deep_supervision=False)
    with torch.no_grad():
        for parameter in network.parameters():  # nnU-Net's zeros and ones would be equal in every Primus
            parameter.add_(torch.rand_like(parameter) * 0.01)
    return network


def clones(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


# nnssl, AbstractBaseTrainer.save_checkpoint and AdaptationPlan.serialize: the weights of the pretraining network, the
# architecture, the configuration of the pretraining, and where the parts of the network are.
NNSSL_RESENC = {
    "key_to_encoder": "encoder.stages",
    "key_to_stem": "encoder.stem",
    "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
    "key_to_lpe": None,
}
NNSSL_PRIMUS = {
    "key_to_encoder": "eva",
    "key_to_stem": "down_projection",
    "keys_to_in_proj": ["down_projection.proj"],
    "key_to_lpe": "eva.pos_embed",
}


def nnssl(weights, keys, architecture="ResEncL", patch=(160, 160, 160)):
    """The content of a checkpoint of nnssl."""
    return {
        "network_weights": weights,
        "citations": [],
        "trainer_name": "BaseMAETrainer",
        "nnssl_adaptation_plan": {
            "architecture_plans": {"arch_class_name": architecture, "arch_kwargs": None},
            "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": list(patch), "spacing": [1, 1, 1]}}},
            "pretrain_num_input_channels": 1,
            "recommended_downstream_patchsize": list(patch),
            **keys,
        },
    }


def moved(weights, renames):
    """The same weights under other prefixes."""
    result = {}
    for name, value in weights.items():
        for old, new in renames.items():
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        result[name] = value
    return result
