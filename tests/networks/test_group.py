"""Students side by side, and their mean as one network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_collab.networks.group import StudentEnsemble, StudentGroup
from nnunet_collab.networks.student import Student


def students(count=2, outputs=3):
    torch.manual_seed(0)
    return [Student(f"S{i}", nn.Conv2d(1, outputs, 3, padding=1), {}) for i in range(count)]


class Fixed(nn.Module):
    """A network that always answers with the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, image):
        return self.logits


def ensemble_of(logits, *, regions):
    return StudentEnsemble([Student(f"S{i}", Fixed(z), {}) for i, z in enumerate(logits)], regions=regions)


def test_every_student_sees_the_same_image_and_answers_by_name():
    members = students()
    group, image = StudentGroup(members), torch.randn(2, 1, 8, 8)
    outputs = group(image)
    assert list(outputs) == ["S0", "S1"]
    assert all(torch.equal(outputs[s.name].logits, s.network(image)) for s in members)
    assert list(group) == members
    assert group["S1"] is members[1]


def test_weights_are_named_after_student_and_network():
    assert list(StudentGroup(students()).state_dict()) == [
        f"students.S{i}.network.{name}" for i in (0, 1) for name in ("weight", "bias")
    ]


def test_an_ensemble_has_the_weights_names_of_the_group():
    members = students()
    assert list(StudentEnsemble(members, regions=False).state_dict()) == list(StudentGroup(members).state_dict())


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("regions", [False, True])
def test_its_probabilities_are_the_mean_of_the_students(count, regions):
    logits = [4 * torch.randn((2, 3, 5, 6), generator=torch.Generator().manual_seed(i)) for i in range(count)]
    found = ensemble_of(logits, regions=regions)(torch.zeros(2, 1, 5, 6)).double()
    if regions:
        want = torch.stack([1 / (1 + (-z.double()).exp()) for z in logits]).mean(0)
        found = 1 / (1 + (-found).exp())
    else:
        want = torch.stack([z.double().exp() / z.double().exp().sum(1, keepdim=True) for z in logits]).mean(0)
        found = found.exp() / found.exp().sum(1, keepdim=True)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("regions", [False, True])
def test_one_student_alone_keeps_its_decision_everywhere(regions):
    logits = 4 * torch.randn(2, 3, 5, 6)
    found = ensemble_of([logits], regions=regions)(torch.zeros(2, 1, 5, 6))
    assert torch.equal(found > 0, logits > 0) if regions else torch.equal(found.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_stay_finite_and_mean_what_they_say(regions, dtype):
    sure, sure_of_the_other = torch.tensor([6e4, -6e4]), torch.tensor([-6e4, 6e4])
    shape = (1, 2, 1, 1)
    agreeing = ensemble_of([sure.view(shape).to(dtype)] * 2, regions=regions)(torch.zeros(1))
    assert agreeing.isfinite().all()
    assert agreeing.dtype is torch.float32
    opposed = ensemble_of([z.view(shape).to(dtype) for z in (sure, sure_of_the_other)], regions=regions)(torch.zeros(1))
    assert opposed.isfinite().all()
    probs = [z.sigmoid() if regions else z.softmax(1) for z in (agreeing, opposed)]
    assert probs[0].flatten().tolist() == [1.0, 0.0]
    assert probs[1].flatten().tolist() == pytest.approx([0.5, 0.5])


def test_the_ensemble_can_be_trained_through():
    ensemble = StudentEnsemble(students(), regions=False)
    ensemble(torch.randn(1, 1, 4, 4))[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ensemble.parameters())
