"""With all collaboration off, the CNN student is trained exactly as stock nnU-Net trains it."""

from __future__ import annotations

import pytest
import torch
from e2e_nnunet import TINY, differing_tensors

pytestmark = pytest.mark.slow

ALONE = {**TINY, "epochs": 3, "beta": 0, "gamma_encoder": 0, "gamma_decoder": 0}


def hundredfold(loss):
    return lambda output, target: 100 * loss(output, target)


@pytest.mark.parametrize(
    ("kind", "configuration"),
    [("plain", "2d"), ("ignore", "3d_fullres"), ("regions", "2d"), ("regions_ignore", "3d_fullres")],
)
def test_the_cnn_learns_bit_for_bit_as_with_stock_nnunet(kind, configuration, in_process):
    ours = in_process("CTRCLTrainer", kind, configuration, ALONE, "vanilla")
    ours.initialize()
    cnn = ours.group["CNN"].network
    batches, _ = ours.get_dataloaders()
    ours.set_deep_supervision_enabled(True)
    ours.network.train()

    stock = in_process("nnUNetTrainer", kind, configuration, group="vanilla")
    stock.num_epochs, stock.num_iterations_per_epoch = ours.num_epochs, ours.num_iterations_per_epoch
    stock.initialize()
    stock.network.load_state_dict(cnn.state_dict())
    start = {name: value.clone() for name, value in cnn.state_dict().items()}

    for epoch in range(ours.num_epochs):
        stock.current_epoch = epoch
        stock.on_train_epoch_start()
        if epoch == 1:  # from now on the gradients are so large that they are clipped
            ours.supervised, stock.loss = hundredfold(ours.supervised), hundredfold(stock.loss)
        for _ in range(ours.num_iterations_per_epoch):
            batch = next(batches)
            ours.train_step(batch)
            stock.train_step(batch)
    assert differing_tensors(cnn.state_dict(), stock.network.state_dict()) == []
    assert len(differing_tensors(cnn.state_dict(), start)) > 10
    momenta = [
        [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
        for optimizer in (ours.optimizers.optimizers["CNN"], stock.optimizer)
    ]
    assert len(momenta[0]) == len(momenta[1])
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))
