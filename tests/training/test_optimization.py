"""A student is stepped as if it were alone, whatever happens to the others."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.lr_scheduler.warmup import Lin_incr_LRScheduler, PolyLRScheduler_offset
from torch import nn
from torch.amp import GradScaler

from nnunet_collab.networks.group import StudentGroup
from nnunet_collab.networks.student import Student
from nnunet_collab.training.optimization import StudentOptimizers
from nnunet_collab.training.settings import CNN, TRANSFORMER, StudentSettings, TrainingSettings

SGD = replace(CNN, lr=0.1, grad_clip=0.5)
ADAM = replace(TRANSFORMER, lr=0.1, grad_clip=0.25, warmup=0.0)
IMAGE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def settings_of(*students, **options):
    return TrainingSettings(students=students, **{"epochs": 4, "iterations_per_epoch": 5, **options})


def make(*students, scaler=None, **options):
    torch.manual_seed(0)
    group = StudentGroup(Student(s.name, nn.Conv2d(1, 2, 3), {}, frozen=bool(s.frozen)) for s in students)
    return group, StudentOptimizers(group, settings_of(*students, **options), scaler)


def losses(group, scales=(1.0, 1.0)):
    outputs = group(IMAGE)
    return [scale * output.logits.square().mean() for scale, output in zip(scales, outputs.values(), strict=True)]


def step(group, optimizers, iteration, scales=(1.0, 1.0)):
    optimizers.set_learning_rates(iteration)
    optimizers.zero_grad()
    optimizers.backward(sum(losses(group, scales)))
    return clip_and_step(optimizers)


def clip_and_step(optimizers):
    norms = optimizers.clip()
    left = optimizers.step({name: norm.item() for name, norm in norms.items()})
    assert left == [name for name, norm in norms.items() if not norm.isfinite()]
    return norms


def weights(group, name):
    return [p.detach().clone() for p in group[name].parameters()]


def alone(network, settings, make_optimizer, steps):
    """The plain loop: one network, one optimizer, its gradient clipped."""
    optimizer = make_optimizer(network.parameters())
    for iteration in range(steps):
        epoch_start = iteration - iteration % 5 if settings.lr_per == "epoch" else iteration
        optimizer.param_groups[0]["lr"] = settings.lr * (1 - epoch_start / 20) ** 0.9
        optimizer.zero_grad()
        network(IMAGE).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.grad_clip)
        optimizer.step()
    return list(network.parameters())


def test_warm_up_per_epoch_is_nnunets_from_the_first_epoch_on():
    student = replace(SGD, lr_per="epoch", warmup=0.05)
    _, optimizers = make(student, epochs=100)
    rates = [optimizers.learning_rates(i)["CNN"] for i in range(100 * 5)]
    assert rates[::5] == rates[4::5]  # one rate per epoch
    parameters = [nn.Parameter(torch.zeros(1))]
    want = []
    for make_schedule, epochs in (
        (lambda o: Lin_incr_LRScheduler(o, 0.1, 5), range(5)),
        (lambda o: PolyLRScheduler_offset(o, 0.1, 100, 5), range(5, 100)),
    ):
        optimizer = torch.optim.SGD(parameters, 0.1)
        schedule = make_schedule(optimizer)
        for epoch in epochs:
            schedule.step(epoch)
            want.append(optimizer.param_groups[0]["lr"])
    assert rates[::5] == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("nesterov", [True, False])
def test_nesterovs_momentum_is_a_choice(nesterov):
    student = replace(SGD, nesterov=nesterov, grad_clip=0.5)
    group, optimizers = make(student)
    network = copy.deepcopy(group["CNN"].network)
    for iteration in range(4):
        optimizers.set_learning_rates(iteration)
        optimizers.zero_grad()
        optimizers.backward(losses(group, (1.0,))[0])
        clip_and_step(optimizers)

    def plain(parameters):
        return torch.optim.SGD(parameters, 1.0, weight_decay=3e-5, momentum=0.99, nesterov=nesterov)

    assert all(map(torch.equal, weights(group, "CNN"), alone(network, student, plain, 4)))


MAKE = {
    "CNN": lambda parameters: torch.optim.SGD(parameters, 1.0, weight_decay=3e-5, momentum=0.99, nesterov=True),
    "Transformer": lambda parameters: torch.optim.AdamW(parameters, 1.0, weight_decay=5e-2, betas=(0.9, 0.98)),
}


@pytest.mark.parametrize("settings", [SGD, ADAM], ids=lambda s: s.name)
def test_a_students_steps_are_those_of_its_optimizer_alone_bit_for_bit(settings):
    group, optimizers = make(SGD, ADAM)
    network = copy.deepcopy(group[settings.name].network)
    for iteration in range(7):
        step(group, optimizers, iteration, scales=(1.0, 1.0))
    want = alone(network, settings, MAKE[settings.name], 7)
    assert all(map(torch.equal, weights(group, settings.name), want))


def test_an_exploding_student_does_not_shrink_the_others_step():
    (calm, calm_optimizers), (group, optimizers) = make(SGD, ADAM), make(SGD, ADAM)
    calm_norms = step(calm, calm_optimizers, 0)
    norms = step(group, optimizers, 0, scales=(1e6, 1.0))
    assert all(map(torch.equal, weights(group, "Transformer"), weights(calm, "Transformer")))
    assert torch.equal(norms["Transformer"], calm_norms["Transformer"])
    assert norms["CNN"].item() == pytest.approx(1e6 * calm_norms["CNN"].item(), rel=1e-5)


def test_norms_are_those_before_clipping_and_steps_those_after():
    group, optimizers = make(replace(SGD, momentum=0.0, weight_decay=0.0))
    before = weights(group, "CNN")
    norms = step(group, optimizers, 0, scales=(1e3,))
    assert norms["CNN"] > 0.5
    moved = torch.cat([(b - a).flatten() for a, b in zip(weights(group, "CNN"), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.1 * 0.5, rel=1e-4)  # learning rate times the largest norm


def test_without_a_limit_nothing_is_clipped():
    group, optimizers = make(replace(SGD, momentum=0.0, weight_decay=0.0, grad_clip=0.0))
    before = weights(group, "CNN")
    gradient = torch.autograd.grad(losses(group, (1e3,))[0], list(group.parameters()))
    step(group, optimizers, 0, scales=(1e3,))
    for new, old, slope in zip(weights(group, "CNN"), before, gradient, strict=True):
        torch.testing.assert_close(new, old - 0.1 * slope)


@pytest.mark.parametrize("scaler", [None, GradScaler("cpu", init_scale=256.0)], ids=["plain", "scaler"])
@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_keeps_its_student_where_it_is_and_the_others_go_on(scaler, poison):
    scaler = copy.deepcopy(scaler)
    (calm, calm_optimizers), (group, optimizers) = make(SGD, ADAM), make(SGD, ADAM, scaler=scaler)
    before = weights(group, "CNN")
    step(calm, calm_optimizers, 0)
    norms = step(group, optimizers, 0, scales=(poison, 1.0))
    assert not norms["CNN"].isfinite()
    assert norms["Transformer"].isfinite()
    assert all(map(torch.equal, weights(group, "CNN"), before))
    assert all(map(torch.equal, weights(group, "Transformer"), weights(calm, "Transformer")))
    assert optimizers.optimizers["CNN"].state_dict()["state"] == {}  # no momentum of NaN either
    if scaler is not None:
        assert scaler.get_scale() == 128.0


def test_with_a_scaler_the_steps_are_the_same():
    (plain, plain_optimizers), (scaled, scaled_optimizers) = (
        make(SGD, ADAM), make(SGD, ADAM, scaler=GradScaler("cpu", init_scale=256.0))
    )  # fmt: skip
    for iteration in range(3):
        step(plain, plain_optimizers, iteration)
        step(scaled, scaled_optimizers, iteration)
    assert all(map(torch.equal, scaled.state_dict().values(), plain.state_dict().values()))


def test_a_discarded_step_leaves_the_scale_and_the_next_step_as_they_were():
    scaler = GradScaler("cpu", init_scale=256.0)
    (plain, plain_optimizers), (group, optimizers) = make(SGD, ADAM), make(SGD, ADAM, scaler=scaler)
    before = weights(group, "CNN")
    optimizers.zero_grad()
    optimizers.backward(sum(losses(group, (float("nan"), 1.0))))
    optimizers.clip()
    optimizers.discard(optimizers.scale(torch.device("cpu")).item())
    assert scaler.get_scale() == 256.0
    assert all(map(torch.equal, weights(group, "CNN"), before))
    step(plain, plain_optimizers, 0)
    step(group, optimizers, 0)
    assert all(map(torch.equal, group.state_dict().values(), plain.state_dict().values()))


def test_a_frozen_student_never_changes():
    group, optimizers = make(SGD, replace(ADAM, frozen="folder", weight_decay=0.5))
    before = weights(group, "Transformer")
    optimizers.zero_grad()
    optimizers.backward(losses(group)[0])
    assert (
        list(clip_and_step(optimizers)) == list(optimizers.optimizers) == list(optimizers.learning_rates(0)) == ["CNN"]
    )
    assert all(map(torch.equal, weights(group, "Transformer"), before))


def test_parameters_that_do_not_learn_are_left_alone_even_by_weight_decay():
    torch.manual_seed(0)
    group = StudentGroup([Student("CNN", nn.Conv2d(1, 2, 3), {})])
    group["CNN"].network.bias.requires_grad_(False)
    bias = group["CNN"].network.bias.clone()
    optimizers = StudentOptimizers(group, settings_of(replace(SGD, weight_decay=0.5)), None)
    step(group, optimizers, 0, scales=(1.0,))
    assert torch.equal(group["CNN"].network.bias, bias)


@pytest.mark.parametrize("iteration", range(20))
def test_learning_rates_follow_nnunets_schedulers_per_epoch_and_per_iteration(iteration):
    def rate(make_scheduler, at):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
        make_scheduler(optimizer).step(at)
        return optimizer.param_groups[0]["lr"]

    warm = StudentSettings(name="W", optimizer="adamw", lr=3e-4, warmup=0.2, lr_per="iteration")
    _, optimizers = make(SGD, warm)
    optimizers.set_learning_rates(iteration)
    found = {name: o.param_groups[0]["lr"] for name, o in optimizers.optimizers.items()}
    assert found == optimizers.learning_rates(iteration)
    assert found["CNN"] == pytest.approx(rate(lambda o: PolyLRScheduler(o, 0.1, 4), iteration // 5), rel=1e-14)
    make_warm = (
        (lambda o: Lin_incr_LRScheduler(o, 3e-4, 4))
        if iteration < 4
        else (lambda o: PolyLRScheduler_offset(o, 3e-4, 20, 4))
    )
    assert found["W"] == pytest.approx(rate(make_warm, iteration), rel=1e-14)


def test_optimizers_are_those_that_the_settings_name():
    _, optimizers = make(replace(SGD, momentum=0.0), ADAM)
    plain, adam = optimizers.optimizers["CNN"], optimizers.optimizers["Transformer"]
    assert (type(plain), plain.defaults["nesterov"], plain.defaults["momentum"]) == (torch.optim.SGD, False, 0.0)
    assert (type(adam), adam.defaults["betas"], adam.defaults["weight_decay"]) == (torch.optim.AdamW, (0.9, 0.98), 0.05)


def test_state_goes_on_bit_for_bit():
    group, optimizers = make(SGD, ADAM)
    for iteration in range(3):
        step(group, optimizers, iteration)
    twin, other = make(SGD, ADAM)
    twin.load_state_dict(group.state_dict())
    other.load_state_dict(copy.deepcopy(optimizers.state_dict()))
    for iteration in range(3, 6):
        step(group, optimizers, iteration)
        step(twin, other, iteration)
    assert all(map(torch.equal, twin.state_dict().values(), group.state_dict().values()))
