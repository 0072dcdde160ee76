"""The mean teacher: its weights in closed form, and that it and its students leave each other alone."""

from __future__ import annotations

import io

import pytest
import torch
from tiny import shrink_segformer, unet
from torch import nn

from nnunet_collab.networks.blueprint import build_network, make_blueprint
from nnunet_collab.networks.group import StudentGroup
from nnunet_collab.networks.student import Student
from nnunet_collab.networks.teacher import EMATeacher


def small_group(dtype=torch.float64):
    """One student with every kind of tensor: weights, running statistics, a counter; and with dropout."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 3, 1))
    return StudentGroup([Student("CNN", network.to(dtype), {"encoder": "0"})])


def real_group(monkeypatch):
    """A UNet with deep supervision and a SegFormer."""
    shrink_segformer(monkeypatch)
    torch.manual_seed(0)
    cnn = build_network(unet(), 1, 3, deep_supervision=True)
    transformer = build_network(make_blueprint("T", "segformer_b0", {}, unet(), (32, 32)), 1, 3, deep_supervision=True)
    taps = {"encoder": "encoder.stages.3", "decoder": "decoder.stages.2"}
    return StudentGroup([Student("CNN", cnn, taps), Student("T", transformer, dict(transformer.taps))])


def image_of(count=2, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, 1, 32, 32), generator=generator, dtype=torch.float64).to(dtype)


def move(group, seed):
    """A step of training: new weights, and new running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in group.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    group.train()(image_of(seed=seed, dtype=next(group.parameters()).dtype))


def weights(group):
    return torch.cat([p.detach().double().flatten() for p in group.parameters()]).clone()


def equal_states(a, b):
    assert list(a) == list(b)
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_average_has_its_closed_form(dtype, rtol):
    group = small_group(dtype)
    decay, warm_up = 0.8, 5  # 1 - 1/5 = 0.8
    teacher, history = EMATeacher(group, decay), []
    for t in range(1, 13):
        move(group, t)
        teacher.update(group)
        history.append(weights(group))
        if (
            t <= warm_up
        ):  # min(1 - 1/t, d) = 1 - 1/t: the plain mean of all students so far; the start has no part in it
            want = torch.stack(history).mean(0)
        else:
            want = decay ** (t - warm_up) * torch.stack(history[:warm_up]).mean(0)
            for j in range(warm_up + 1, t + 1):
                want += (1 - decay) * decay ** (t - j) * history[j - 1]
        torch.testing.assert_close(weights(teacher.group), want, rtol=rtol, atol=rtol)
        assert teacher.updates == t


def test_a_decay_of_zero_copies_every_time():
    group = small_group()
    teacher = EMATeacher(group, 0.0)
    for t in range(3):
        move(group, t)
        teacher.update(group)
        assert equal_states(teacher.group.state_dict(), group.state_dict())


def test_it_starts_as_a_copy_with_tensors_of_its_own(monkeypatch):
    group = real_group(monkeypatch)
    teacher = EMATeacher(group, 0.99)
    assert equal_states(teacher.group.state_dict(), group.state_dict())
    before = weights(teacher.group)
    with torch.no_grad():
        for p in group.parameters():
            p.add_(1.0)
    assert torch.equal(weights(teacher.group), before)
    now = weights(group)
    teacher.update(group)
    teacher.update(group)
    assert torch.equal(weights(group), now)  # the student is only read


def test_running_statistics_are_copied_not_averaged():
    group = small_group()
    teacher = EMATeacher(group, 0.9)
    for t in range(4):
        move(group, t)
        teacher.update(group)
    own, theirs = (dict(g.named_buffers()) for g in (teacher.group, group))
    assert [name.rsplit(".", 1)[1] for name in own] == ["running_mean", "running_var", "num_batches_tracked"]
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert all(own[name] is not theirs[name] for name in own)
    kept = {name: buffer.clone() for name, buffer in own.items()}
    teacher(image_of())
    assert equal_states(dict(teacher.group.named_buffers()), kept)  # predicting does not move them
    assert not torch.equal(weights(teacher.group), weights(group))


def test_it_predicts_in_evaluation_mode_and_without_gradient():
    group = small_group()
    teacher = EMATeacher(group, 0.9)
    move(group, 1)
    teacher.update(group)
    group.train()
    image = image_of().requires_grad_()
    first, second = teacher(image)["CNN"], teacher(image)["CNN"]
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad
    assert not first.encoder.requires_grad
    assert not any(p.requires_grad for p in teacher.group.parameters())
    assert all(p.requires_grad for p in group.parameters())
    assert group.training
    assert all(module.training for module in group.modules())
    assert not any(module.training for module in teacher.group.modules())
    (group(image)["CNN"].logits - first.logits).square().sum().backward()
    assert all(p.grad is None for p in teacher.group.parameters())
    assert any(p.grad is not None for p in group.parameters())
    teacher.update(group)  # not even the averages of tensors with gradients have some
    assert not any(p.requires_grad or p.grad is not None for p in teacher.group.parameters())


@pytest.mark.parametrize("own_updates", [0, 2])
@pytest.mark.parametrize("before", [0, 1, 3, 7])
def test_a_restored_teacher_continues_as_the_first_one(before, own_updates):
    group, other = small_group(), small_group()
    teacher = EMATeacher(group, 0.8)
    for t in range(before):
        move(group, t)
        teacher.update(group)
    file = io.BytesIO()
    torch.save({"teacher": teacher.state_dict(), "group": group.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    move(other, 100)  # a new process starts from other weights
    restored = EMATeacher(other, 0.8)
    for _ in range(own_updates):
        restored.update(other)
    other.load_state_dict(state["group"])
    restored.load_state_dict(state["teacher"])
    for t in range(before, before + 4):
        assert restored.updates == teacher.updates == t
        assert equal_states(restored.group.state_dict(), teacher.group.state_dict())
        assert torch.equal(restored(image_of())["CNN"].logits, teacher(image_of())["CNN"].logits)
        for each, averages in ((group, teacher), (other, restored)):
            move(each, t)
            averages.update(each)
    assert not any(p.requires_grad for p in restored.group.parameters())


def test_features_of_teacher_and_student_are_their_own(monkeypatch):
    group = real_group(monkeypatch)
    teacher = EMATeacher(group, 0.9)
    with torch.no_grad():
        for p in group.parameters():
            p.mul_(1.3)
    group.eval()
    image, other = image_of(dtype=torch.float32), image_of(dtype=torch.float32, seed=2)
    want_student, want_teacher = group(image), teacher(other)
    # In the middle of the student's pass, behind its encoder, the teacher passes another image.
    taken = []
    handles = [s.network.decoder.register_forward_pre_hook(lambda *_: taken.append(teacher(other))) for s in group]
    found = group(image)
    for handle in handles:
        handle.remove()
    assert len(taken) == 2
    for name in want_student:
        for level in ("logits", "encoder", "decoder"):
            own = getattr(want_student[name], level)
            assert torch.equal(getattr(found[name], level), own)
            assert torch.equal(getattr(taken[0][name], level), getattr(want_teacher[name], level))
            assert not torch.equal(own, getattr(want_teacher[name], level))
    maps = teacher.group["CNN"].network.encoder(other)
    assert torch.equal(want_teacher["CNN"].encoder, maps[3])
    for student in [*group, *teacher.group]:
        assert (student._encoder_map, student._decoder_map) == (None, None)


def test_it_has_no_deep_supervision_while_its_students_have(monkeypatch):
    group = real_group(monkeypatch)
    teacher, image = EMATeacher(group, 0.9), image_of(dtype=torch.float32)
    for _ in range(2):
        assert [len(o.auxiliary) for o in teacher(image).values()] == [0, 0]
        assert [len(o.auxiliary) for o in group(image).values()] == [2, 0]
        teacher.update(group)
    for student in group:
        student.set_deep_supervision(True)
    assert [len(o.auxiliary) for o in teacher(image).values()] == [0, 0]
    group.eval()
    for name, output in teacher(image).items():  # right after a copy of the weights the same prediction
        torch.testing.assert_close(output.logits, group(image)[name].logits, rtol=1e-4, atol=1e-5)
