"""Time of the semi-supervised steps, compared with the published programs and with plain steps.

python benchmarks/semi_supervised_step.py                                    on the CPU
python benchmarks/semi_supervised_step.py --scale 2d --compile               on a GPU

The networks are equal on both sides of each ratio: the planned UNet, and for Cross Teaching also a SegFormer; no
deep supervision, which the published programs do not have. "As published" repeats how those programs organize a step:
CrossMatch takes two passes without gradient for the images that fill its boxes (through the second of which go the
labeled images, too) and two training passes, Cross Teaching
one pass per network and Dice class by class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_collab.methods.cross_teaching import CrossTeachingSettings, CrossTeachingTrainer
from nnunet_collab.methods.crossmatch import CrossMatchSettings, CrossMatchTrainer
from nnunet_collab.methods.mean_teacher import MeanTeacherSettings, MeanTeacherTrainer
from nnunet_collab.methods.supervised import SupervisedSettings, SupervisedTrainer
from nnunet_collab.networks.perturbation import PerturbedPass


def main() -> None:
    """Measure and print the tables."""
    args = harness.arguments(__doc__)
    pair = harness.pair_settings(args).students
    cross_match = harness.make_semi_supervised_trainer(
        args, CrossMatchSettings(deep_supervision=False), CrossMatchTrainer
    )
    cross_teaching = harness.make_semi_supervised_trainer(
        args, CrossTeachingSettings(students=pair, deep_supervision=False), CrossTeachingTrainer
    )
    mean_teacher = harness.make_semi_supervised_trainer(
        args, MeanTeacherSettings(deep_supervision=False), MeanTeacherTrainer
    )
    second = harness.make_semi_supervised_trainer(
        args, CrossMatchSettings(deep_supervision=False, mixing="second_batch"), CrossMatchTrainer
    )
    batches = {
        t: harness.make_semi_supervised_batch(args, t) for t in (cross_match, cross_teaching, mean_teacher, second)
    }
    # As many images as CrossMatch encodes: labeled, weak, and two strong views.
    plain = harness.make_trainer(args, SupervisedSettings(deep_supervision=False), SupervisedTrainer)
    half = harness.SCALES[args.scale]["batch"] // 2
    whole = harness.make_batch(args)
    many = {
        "data": torch.cat([whole["data"]] * 2)[: 4 * half],
        "target": torch.cat([whole["target"][0]] * 2)[: 4 * half],
    }
    steps: dict[str, Callable[[], Any]] = {
        "plain, as many images as CrossMatch encodes": lambda: plain.train_step(many),
        "CrossMatch": lambda: cross_match.train_step(batches[cross_match]),
        "CrossMatch, boxes from a second batch of images": lambda: second.train_step(batches[second]),
        "CrossMatch, as published": lambda: crossmatch_as_published(second, batches[second]),
        "Cross Teaching": lambda: cross_teaching.train_step(batches[cross_teaching]),
        "Cross Teaching, as published": lambda: cross_teaching_as_published(cross_teaching, batches[cross_teaching]),
        "Mean Teacher": lambda: mean_teacher.train_step(batches[mean_teacher]),
        "update of the teacher": lambda: mean_teacher.teacher.update(mean_teacher.group),
        **decoder_passes(cross_match, batches[cross_match]),
    }
    seconds = harness.alternate(steps, args)
    print(f"{harness.hardware(args.device, args.threads)}; {args.scale} {harness.SCALES[args.scale]}")
    for name, value in seconds.items():
        print(f"{name:46}{value * 1e3:10.1f} ms")
    dropped = seconds["forward and backward with four perturbed passes"] - seconds["forward and backward without"]
    ratios = {
        "CrossMatch / plain step on as many images": (
            "CrossMatch",
            "plain, as many images as CrossMatch encodes",
            None,
        ),
        "CrossMatch / as published, bar 0.80": ("CrossMatch", "CrossMatch, as published", 0.80),
        "CrossMatch with a second batch of images / as published": (
            "CrossMatch, boxes from a second batch of images",
            "CrossMatch, as published",
            None,
        ),
        "Cross Teaching / as published, bar 1.00": ("Cross Teaching", "Cross Teaching, as published", 1.0),
        "update of the teacher / Mean Teacher step, bar 0.02": ("update of the teacher", "Mean Teacher", 0.02),
    }
    for name, (above, below, bar) in ratios.items():
        print(harness.line(name, seconds[above] / seconds[below], bar))
    names = ("CrossMatch", "CrossMatch, boxes from a second batch of images", "CrossMatch, as published")
    ours, with_second, published = (harness.flop(steps[name]) for name in names)
    print(harness.line("FLOP of CrossMatch / as published, bar 0.77", ours / published, 0.77))
    print(
        harness.line("FLOP of CrossMatch with a second batch of images / as published", with_second / published, None)
    )
    print(harness.line("four dropped passes / decoder pass, bar 4.00", dropped / seconds["one decoder pass"], 4.0))


def decoder_passes(trainer: Any, batch: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """Forward and backward of the student without and with its dropped perturbed_passes, and of its decoder alone."""
    student = trainer.group["CNN"]
    own = trainer.read_batch(batch)
    weak, second = own.weak, own.strong[1]
    images = torch.cat([weak, second])
    n = len(weak)
    perturbed_passes = [
        PerturbedPass(start, start + n, rate) for start in (0, n) for rate in trainer.settings.drop_rates
    ]
    with torch.no_grad():
        features = [f.detach() for f in student.network.encoder(weak)]

    def run(*arguments: Any) -> None:
        student(*arguments).logits.float().mean().backward()
        trainer.optimizers.zero_grad()

    def decode() -> None:
        inputs = [f.requires_grad_() for f in features]
        student.network.decoder(inputs).float().mean().backward()
        trainer.optimizers.zero_grad()
        for feature in inputs:
            feature.grad = None

    return {
        "forward and backward without": lambda: run(images),
        "forward and backward with four perturbed passes": lambda: run(images, perturbed_passes),
        "one decoder pass": decode,
    }


def _published_dice(logits: Tensor, labels: Tensor, ignored: Tensor | None = None) -> Tensor:
    """Class by class with one-hot labels, squares in the denominator."""
    p = logits.float().softmax(1)
    one_hot = torch.stack([labels == k for k in range(p.shape[1])], dim=1).float()
    loss = torch.zeros((), device=p.device)
    for k in range(p.shape[1]):
        score, truth = p[:, k], one_hot[:, k]
        if ignored is not None:
            score, truth = score[~ignored], truth[~ignored]
        intersection = torch.sum(score * truth)
        loss = loss + 1 - (2 * intersection + 1e-5) / (torch.sum(score * score) + torch.sum(truth * truth) + 1e-5)
    return loss / p.shape[1]


def cross_teaching_as_published(trainer: Any, batch: dict[str, Any]) -> None:
    """Both networks on the whole batch, (CE + Dice) / 2 and Dice on the other's hard labels, two optimizers."""
    own = trainer.read_batch(batch)
    images, labels = torch.cat([own.image, own.weak]), own.truth.labels
    n = len(own.image)
    with trainer._autocast():
        logits = [student(images).logits for student in trainer.group]
    pseudo = [z[n:].detach().softmax(1).argmax(1) for z in logits]
    total = torch.zeros((), device=images.device)
    for i, z in enumerate(logits):
        supervised = 0.5 * (F.cross_entropy(z[:n].float(), labels) + _published_dice(z[:n], labels))
        total = total + supervised + 0.1 * _published_dice(z[n:], pseudo[1 - i])
    _step(trainer, total)


def crossmatch_as_published(trainer: Any, batch: dict[str, Any]) -> None:
    """Two passes without gradient for the filling, then labeled and weak images, then both strong views."""
    own, second = trainer.divide(trainer.read_batch(batch))
    student, rates = trainer.group["CNN"], trainer.settings.drop_rates
    n, labels = len(own.weak), own.truth.labels
    with trainer._autocast():
        with torch.no_grad():
            filling = [student(second.weak).logits]
            # The published program passes its labeled images along here, too, and throws their prediction away.
            both, of_second = torch.cat([own.image, second.weak]), len(own.image)
            passes = [PerturbedPass(of_second, of_second + n, rate) for rate in rates]
            filling += student(both, passes).logits.split(n)[2:]
        first = student(torch.cat([own.image, own.weak]), [PerturbedPass(n, 2 * n, rate) for rate in rates]).logits
        x_l, w, w_w, w_s = first.split(n)
        cut = [trainer.draw_cutmix(own) for _ in range(2)]
        strong = [cut[i](own.strong[i], second.strong[i]) for i in range(2)]
        second = student(torch.cat(strong), [PerturbedPass(n, 2 * n, rate) for rate in rates]).logits
    s1, s2, s2_w, s2_s = second.split(n)
    tau = trainer.threshold()

    def teach(z: Tensor, teacher: Tensor, fill: Tensor | None = None, mix: Any = None) -> Tensor:
        confidence, label = teacher.detach().float().softmax(1).max(1)
        if mix is not None:
            other_confidence, other_label = fill.float().softmax(1).max(1)
            confidence, label = mix(confidence, other_confidence), mix(label, other_label)
        return _published_dice(z, label, confidence < tau)

    image = (teach(s1, w, filling[0], cut[0]) + teach(s2, w, filling[0], cut[1])) / 2
    distilled = [teach(w_w, w), teach(w_s, w)]
    distilled += [teach(z, w, filling[0], cut[1]) for z in (s2_w, s2_s)]
    assisted = [teach(s2_w, w_w, filling[1], cut[1]), teach(s2_s, w_s, filling[2], cut[1])]
    supervised = (F.cross_entropy(x_l.float(), labels) + _published_dice(x_l, labels)) / 2
    _step(trainer, (supervised + image + 0.7 * sum(distilled) / 4 + 0.3 * sum(assisted) / 2) / 3)


def _step(trainer: Any, total: Tensor) -> None:
    trainer.optimizers.zero_grad()
    trainer.optimizers.backward(total)
    norms = trainer.optimizers.clip()
    trainer.optimizers.step({name: norm.item() for name, norm in norms.items()})


if __name__ == "__main__":
    main()
