"""Every value of every preset, against the papers and the released code, written off them here and not read from it.

Where a paper gives no value, the comment says whose it is. A key that a preset sets and this table does not name fails.
"""

from __future__ import annotations

import importlib

import pytest

from nnunet_collab.core.presets import preset_names, read
from nnunet_collab.core.settings import change, to_json
from nnunet_collab.core.shipped import doorways

ABOUT = {"description", "trainer", "preset"}  # what a preset says of itself
# Of every student of every preset: the learning rate decays in every iteration with the power 0.9, nothing warms up,
# and gradients are not clipped (released code; CTRCL IV.B gives the power).
PER_ITERATION = {"warmup": 0.0, "poly_power": 0.9, "lr_per": "iteration", "grad_clip": 0.0}
COMMON = {"deep_supervision": False, "augmentation": "flips_and_rotations"}

# CTRCL, section IV.B: AdamW, semantic FPN and SegFormer heads (which have batch normalization), ImageNet weights.
# Weight decay is not given: AdamW's default in torch, as are the betas.
CTRCL_STUDENT = {
    "optimizer": "adamw", "weight_decay": 0.01, "betas": [0.9, 0.999], "pretrained": True,
    "arch": {"head_norm": "batch"}, **PER_ITERATION,
}  # fmt: skip
CTRCL = {"seg_loss": "ce", "batch_size": 8, "beta": 3.0, "gamma_encoder": 1.0, "gamma_decoder": 2.0, **COMMON}
# 1902 slices of ACDC's 100 cases (table of datasets) in batches of 8, and 900 images of Kvasir.
CTRCL_ACDC = {**CTRCL, "epochs": 200, "iterations_per_epoch": 238, "patch_size": [224, 224]}
CTRCL_KVASIR = {**CTRCL, "epochs": 300, "iterations_per_epoch": 113, "patch_size": [352, 352]}


def pair(cnn, transformer, lr):
    return {
        "CNN": {"network": cnn, "lr": lr, **CTRCL_STUDENT},
        "Transformer": {"network": transformer, "lr": lr, **CTRCL_STUDENT},
    }


# CRLN, section 4.2: momentum, weight decay, learning rate, batch, t, anchors, negatives, S and xi. ReCo's: tau,
# tau_weak and the teacher's decay. TraCoCo's, of the same authors: 9000, 10 000 and 30 000 iterations. Figure 10: 16
# prototypes.
CRLN = {
    "batch_size": 2, "temperature": 0.5, "anchors": 256, "negatives": 512, "rectify_from_iteration": 800, "xi": 0.6,
    "prototypes": 16, "tau": 0.97, "tau_weak": 0.7, "ema_decay": 0.99, "iterations_per_epoch": 250, **COMMON,
}  # fmt: skip
CRLN_STUDENT = {
    "optimizer": "sgd", "lr": 2.5e-3, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4, **PER_ITERATION,
}  # fmt: skip
# Cross Teaching's released code: SGD 0.01, momentum 0.9, weight decay 1e-4 for both; 30 000 iterations; batch 8 + 8;
# weight 0.1 rising over the whole run; Dice on pseudo labels, none left out. The patch is ours (there 224).
CROSS_TEACHING_STUDENT = {
    "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, **PER_ITERATION,
}  # fmt: skip
# CrossMatch, section IV.A.2: 9000 iterations and AdamW (LA), 300 epochs and SGD (ACDC), batch, crop, eta, tau, rates of
# dropout 25 and 75 %. The released code's: learning rates, weight decay, momentum with Nesterov, Dice of all classes or
# of the atrium alone with its smoothing term, the mean of the three losses, 12 + 12 slices.
CROSSMATCH = {
    "mixing": "second_batch", "eta": 0.3, "performance_gap": 0.5, "weigh_dice_by_share": False, **COMMON,
}  # fmt: skip
# (L_sup + L_ip + L_kd) / 3 with L_sup = (CE + Dice) / 2, and nnU-Net's loss is CE + Dice: a sixth of it, others twice.
MEAN_OF_THREE = {"loss_scale": 1 / 6, "image_weight": 2.0, "distillation_weight": 2.0}
CROSSMATCH_LA = {
    **CROSSMATCH, **MEAN_OF_THREE, "epochs": 36, "iterations_per_epoch": 250, "batch_size": 2, "tau": 0.85,
    "tau_schedule": "constant", "criterion": "dice_foreground", "smooth": 1e-5,
}  # fmt: skip
CROSSMATCH_LA_STUDENT = {
    "optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "betas": [0.9, 0.999], **PER_ITERATION,
}  # fmt: skip

# BCP's released code: SGD 0.01, momentum 0.9, weight decay 1e-4 (ACDC, LA), Adam 1e-3 (Pancreas); u_weight 0.5 as
# mix_loss has it, 2/3 of each side, teacher 0.99; halves of the batch are pasted one way each.
BCP = {
    "both_ways": False,
    "unlabeled_weight": 0.5,
    "box": 2 / 3,
    "ema_decay": 0.99,
    "largest_component": True,
    **COMMON,
}
BCP_STUDENT = {
    "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, **PER_ITERATION,
}  # fmt: skip
CONSTANT = {"poly_power": 1e-6}  # no decay at all, where a power must be above 0

PRESETS = {  # name -> trainer, settings, students
    "ctrcl_mobilenetv2_mitb0": ("CTRCLTrainer", CTRCL_ACDC, pair("fpn_mobilenetv2", "segformer_b0", 3e-4)),
    "ctrcl_resnet50_mitb2": ("CTRCLTrainer", CTRCL_ACDC, pair("fpn_resnet50", "segformer_b2", 3e-4)),
    "ctrcl_kvasir_mobilenetv2_mitb0": ("CTRCLTrainer", CTRCL_KVASIR, pair("fpn_mobilenetv2", "segformer_b0", 5e-5)),
    "ctrcl_kvasir_resnet50_mitb2": ("CTRCLTrainer", CTRCL_KVASIR, pair("fpn_resnet50", "segformer_b2", 5e-5)),
    "crln_la": ("CRLNTrainer", {**CRLN, "epochs": 36}, {"CNN": CRLN_STUDENT}),
    "crln_pancreas": ("CRLNTrainer", {**CRLN, "epochs": 40, "patch_size": [96, 96, 96]}, {"CNN": CRLN_STUDENT}),
    "crln_brats": ("CRLNTrainer", {**CRLN, "epochs": 120, "patch_size": [96, 96, 96]}, {"CNN": CRLN_STUDENT}),
    "cross_teaching_acdc": (
        "CrossTeachingTrainer",
        {
            "epochs": 120, "iterations_per_epoch": 250, "batch_size": 8, "patch_size": [256, 256],
            # (CE + Dice) / 2 + 0.1 D, and nnU-Net's loss is CE + Dice: half of its sum with 0.2 D.
            "loss_scale": 0.5, "pseudo_weight": 0.2,
            "pseudo_loss": "dice", "ramp_up": 1.0, "threshold": 0.0, **COMMON,
        },
        {
            "CNN": {"network": "plans", **CROSS_TEACHING_STUDENT},
            "Transformer": {"network": "segformer_b2", "pretrained": True, **CROSS_TEACHING_STUDENT},
        },
    ),
    "crossmatch_acdc": (
        "CrossMatchTrainer",
        {
            # 98 iterations: 1312 slices less the 136 of the 7 labeled patients, in twelves.
            **CROSSMATCH, **MEAN_OF_THREE, "epochs": 300, "iterations_per_epoch": 98, "batch_size": 12,
            "patch_size": [256, 256], "tau": 0.95, "tau_schedule": "constant", "criterion": "dice", "smooth": 1e-4,
        },
        {
            "CNN": {
                "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4,
                **PER_ITERATION,
            },
        },
    ),
    "crossmatch_la": ("CrossMatchTrainer", CROSSMATCH_LA, {"CNN": CROSSMATCH_LA_STUDENT}),
    # The released code since December 2025: 14 000 iterations, 0.75, the threshold by UA-MT's rule over 17 000.
    "crossmatch_la_code": (
        "CrossMatchTrainer",
        {
            **CROSSMATCH_LA, "epochs": 56, "tau": 0.75, "tau_schedule": "la_code", "tau_ramp_iterations": 17000,
            # (L_sup + L_s1 / 4 + L_s2 / 4 + L_kd) / 2, where L_ip = (L_s1 + L_s2) / 2
            "loss_scale": 0.25, "image_weight": 1.0, "distillation_weight": 2.0,
        },
        {"CNN": CROSSMATCH_LA_STUDENT},
    ),
    "bcp_acdc": (
        "BCPTrainer",
        # pre_iterations 10 000, max_iterations 30 000; 24 = 12 + 12; components by all neighbors (default of skimage).
        {
            **BCP, "epochs": 160, "iterations_per_epoch": 250, "start": 40.0, "batch_size": 12,
            "patch_size": [256, 256], "component_neighbors": "corners",
        },
        {"CNN": {**BCP_STUDENT, **CONSTANT}},
    ),
    "bcp_la": (
        "BCPTrainer",
        # pre_max_iteration 2000 and self_max_iteration 15 000; 8 = 4 + 4.
        {
            **BCP, "epochs": 68, "iterations_per_epoch": 250, "start": 8.0, "batch_size": 4,
            "component_neighbors": "corners",
        },
        {"CNN": BCP_STUDENT},
    ),
    "bcp_pancreas": (
        "BCPTrainer",
        # pretraining_epochs 60 of 12 * 5 / 2 batches, self_training_epochs 200 of 50 / 2 (the shorter loader).
        # Four loaders of 2; connect_mode 2.
        {
            **BCP, "epochs": 272, "iterations_per_epoch": 25, "start": 72.0, "batch_size": 4,
            "patch_size": [96, 96, 96], "component_neighbors": "edges",
        },
        {
            "CNN": {
                "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0, "betas": [0.9, 0.999], **PER_ITERATION,
                **CONSTANT,
            },
        },
    ),
    # nnFilterMatch's released trainer: 300 epochs of 250, unlabeled data from epoch 20, initial_lr 1e-2, weight_decay
    # 3e-4; everything else is nnU-Net's own.
    "self_training_nnfiltermatch": (
        "SelfTrainingTrainer",
        {
            "epochs": 300, "iterations_per_epoch": 250, "start": 20.0, "teacher": "student", "unlabeled_weight": 1.0,
            "as_one_batch": True, "threshold": 0.0, "strong_view": "turns", "cutmix_probability": 0.0,
            "augmentation": "nnunet", "deep_supervision": True, "unlabeled_deep_supervision": True,
        },
        {
            "CNN": {
                "optimizer": "sgd", "lr": 1e-2, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-4,
                "warmup": 0.0, "poly_power": 0.9, "lr_per": "epoch", "grad_clip": 12.0,
            },
        },
    ),
    # LDC and CMAformer, section IV.A; slices of 512 x 512 in the released code; equation 2.
    "ldc_lits": (
        "LDCTrainer",
        {"patch_size": [512, 512], "deep_supervision": False, "formulation": "paper_eq2"},
        {
            "CNN": {
                "network": "cmaformer", "optimizer": "sgd", "lr": 1e-3, "momentum": 0.99, "weight_decay": 3e-5,
                **PER_ITERATION,
            },
        },
    ),
}  # fmt: skip


def test_the_table_has_every_preset():
    assert sorted(PRESETS) == sorted(preset_names())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_its_source_says(name):
    trainer, want, students = PRESETS[name]
    given = read(name, takes=(trainer,))
    defaults = getattr(importlib.import_module(doorways()[trainer]), trainer).settings
    found = to_json(change(defaults, {key: value for key, value in given.items() if key not in ABOUT}, name))
    assert {key: found[key] for key in want} == want
    assert given.keys() - ABOUT - {"students"} <= want.keys()
    assert [student["name"] for student in found["students"]] == list(students)
    for student in found["students"]:
        assert {key: student[key] for key in students[student["name"]]} == students[student["name"]]
    for student in given.get("students", ()):
        assert student.keys() - {"name"} <= students[student["name"]].keys()
