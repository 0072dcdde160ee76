"""Time of a CTRCL step, compared with the two supervised steps that it replaces.

Bar: at most 1.10 times their sum, and 1.05 with planned networks, which are larger.

python benchmarks/step_time.py --threads 1 --classes 105          on the CPU; threads 1: seconds of the processor alone
python benchmarks/step_time.py --scale 2d --transformer segformer_b2 --compile    on a GPU
"""

from __future__ import annotations

from dataclasses import replace

import harness

BAR, BAR_PLANNED = 1.10, 1.05
PLANNED = ("2d", "3d", "2d_batch4", "2d_batch2")


def main() -> None:
    """Measure and print the table."""
    args = harness.arguments(__doc__, short="only the three steps of the ratio")
    both = harness.pair_settings(args)
    cnn, transformer = both.students
    off = {"beta": 0.0, "gamma_encoder": 0.0, "gamma_decoder": 0.0}
    variants = {
        "CNN alone": replace(both, students=(cnn,), **off),
        "Transformer alone": replace(both, students=(transformer,), **off),
        "both, supervised": replace(both, **off),
        "both, RLCL": replace(both, gamma_encoder=0.0, gamma_decoder=0.0),
        "both, CFCL": replace(both, beta=0.0),
        "both, CTRCL": both,
    }
    if args.short:
        variants = {name: variants[name] for name in ("CNN alone", "Transformer alone", "both, CTRCL")}
    batch = harness.make_batch(args)
    trainers = {name: harness.make_trainer(args, settings) for name, settings in variants.items()}
    steps = {name: lambda trainer=trainer: trainer.train_step(batch) for name, trainer in trainers.items()}
    seconds = harness.alternate(steps, args)
    alone = seconds["CNN alone"] + seconds["Transformer alone"]
    print(harness.head(args))
    print(f"{'step':24}{'median ms':>12}{'/ (CNN + Transformer)':>24}")
    for name, value in seconds.items():
        print(f"{name:24}{value * 1e3:12.1f}{value / alone:24.3f}")
    ratio = seconds["both, CTRCL"] / alone
    bar = BAR_PLANNED if args.scale in PLANNED else BAR
    verdict = "met" if ratio <= bar else "MISSED"
    print(f"CTRCL step / (CNN step + Transformer step) = {ratio:.3f}, bar {bar:.2f}: {verdict}")


if __name__ == "__main__":
    main()
