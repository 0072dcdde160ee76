"""Every trainer on one GPU beside stock nnU-Net: speed, memory, waits, graph breaks, numbers that are not finite.

python benchmarks/gpu.py --minutes 9                                  writes gpu.md, a table with the hardware's name
python benchmarks/gpu.py --minutes 9 --configurations 3d_fullres      so that the time goes to the larger networks
python benchmarks/gpu.py --minutes 2 --toy --device cpu               whether it runs

Phantoms are planned and preprocessed by nnU-Net itself; then the plans get the networks, patches and batches that
nnU-Net plans for ACDC. Batches come from the loaders, with all of the machine's cores. On CUDA everything runs in
mixed precision and, unless `nnUNet_compile` says no, under torch.compile. Rows that the time did not suffice for say
so. "Waits" are the synchronizations that `torch.cuda.set_sync_debug_mode` reports of one step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import harness
import torch

STOCK = "nnUNetTrainer"
SCALES = {"2d": "2d", "3d_fullres": "3d"}
COLUMNS = ("configuration", "trainer", "steps per s", "/ stock", "waiting for batches", "peak GiB", "waits", "breaks")


def main() -> None:
    """Prepare, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything after the preprocessing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--configurations", nargs="+", choices=SCALES, default=list(SCALES))
    parser.add_argument("--trainers", nargs="+", help="beside stock's; all of this package's by default")
    parser.add_argument("--toy", action="store_true", help="tiny networks and patches")
    parser.add_argument("-o", type=Path, default=Path("gpu.md"), help="the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), args)
        rows = measure_all(args)
    table = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS), *(" | ".join(row) for row in rows)]
    head = f"{harness.hardware(args.device, torch.get_num_threads())}; {os.cpu_count()} cores{', toy sizes' * args.toy}"
    args.o.write_text("\n".join([head, "", *(f"| {row} |" for row in table)]) + "\n")
    print(args.o.read_text())


def prepare(root: Path, args: argparse.Namespace) -> None:
    """A dataset of phantoms, preprocessed, with ACDC's plans."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(root / name)
        (root / name).mkdir()
    os.environ.pop("nnUNet_collab_settings", None)
    cores = harness_cores()
    os.environ.setdefault("nnUNet_n_proc_DA", str(cores))
    from nnunet_collab.demo.phantom import write_dataset  # nnU-Net reads its variables when it is imported

    shape = (6, 48, 48) if args.toy else (16, 256, 224)
    dataset = root / "raw" / "Dataset001_Phantoms"
    write_dataset(dataset, n_train=5, n_test=0, seed=0, shape=shape, spacing_mm=(10.0, 1.5, 1.5), n_unlabeled=4)
    scripts, jobs = Path(sysconfig.get_path("scripts")), str(min(4, cores))
    plan = scripts / "nnUNetv2_plan_and_preprocess"
    _run([str(plan), "-d", "1", "-c", *args.configurations, "-np", *[jobs] * len(args.configurations), "-npfp", jobs])
    command = [sys.executable, "-m", "nnunet_collab", "preprocess_unlabeled", "-d", "1", "-np", jobs]
    for configuration in args.configurations:
        _run([*command, "-c", configuration])
    path = root / "preprocessed" / dataset.name / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    for configuration in args.configurations:
        scale = harness.SCALES[SCALES[configuration]]
        small: dict[str, Any] = {"patch": [64, 64] if configuration == "2d" else [8, 64, 64], "batch": 2}
        entry = plans["configurations"][configuration]
        entry["architecture"] = harness.planned_architecture(SCALES[configuration])
        if args.toy:
            entry["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 8, 8, 8, 8]
        entry["patch_size"] = list((small if args.toy else scale)["patch"])
        entry["batch_size"] = (small if args.toy else scale)["batch"]
    path.write_text(json.dumps(plans))


def harness_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "nnUNet_n_proc_DA": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def measure_all(args: argparse.Namespace) -> list[tuple[str, ...]]:
    """One row per configuration and trainer, within the time."""
    from nnunet_collab.core.shipped import doorways

    names = [STOCK, *(args.trainers or sorted(doorways()))]
    end = time.monotonic() + 60 * args.minutes
    jobs = [(configuration, name) for configuration in args.configurations for name in names]
    rows, stock = [], 0.0
    for number, (configuration, name) in enumerate(jobs):
        left = end - time.monotonic()
        if left <= 0:
            rows.append((configuration, name, "not reached", *[""] * 5))
            continue
        try:
            found = measure(name, configuration, args, left / (len(jobs) - number))
        except Exception as error:  # one trainer that fails must not hide the others
            traceback.print_exc()
            rows.append((configuration, name, f"FAILED: {type(error).__name__}: {str(error)[:120]}", *[""] * 5))
            continue
        stock = found["steps per s"] if name == STOCK else stock
        rows.append(_row(configuration, name, found, stock))
        print(*rows[-1], sep=" | ", flush=True)
    return rows


def _row(configuration: str, name: str, found: dict[str, Any], stock: float) -> tuple[str, ...]:
    speed = found["steps per s"]
    return (
        configuration,
        name,
        f"{speed:.2f}" + ("" if found["finite"] else " (NOT FINITE)"),
        f"{speed / stock:.2f}" if stock else "",
        f"{found['loading']:.0%}",
        f"{found['peak'] / 2**30:.2f}" if found["peak"] else "",
        "" if found["waits"] is None else str(found["waits"]),
        str(found["breaks"]),
    )


def measure(name: str, configuration: str, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Steps of one trainer for about so many seconds; the first ones, which compile, do not count."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    cuda = args.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    end = time.monotonic() + seconds
    trainer = make_trainer(name, configuration, args.device)
    try:
        losses = [_step(trainer)[0] for _ in range(1 if args.toy else 3)]
        waits = count_waits(trainer) if cuda else None
        _synchronize(cuda)
        start, loading, count = time.monotonic(), 0.0, 0
        while count == 0 or time.monotonic() < end:
            loss, loaded = _step(trainer)
            losses.append(loss)
            loading += loaded
            count += 1
        _synchronize(cuda)
        spent = time.monotonic() - start
    finally:
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            getattr(loader, "_finish", lambda: None)()
    return {
        "steps per s": count / spent,
        "loading": loading / spent,
        "finite": bool(torch.isfinite(torch.tensor(losses)).all()),
        "peak": torch.cuda.max_memory_allocated() if cuda else 0,
        "waits": waits,
        "breaks": sum(torch._dynamo.utils.counters["graph_break"].values()),
    }


def make_trainer(name: str, configuration: str, device: str) -> Any:
    """nnU-Net's own way to a trainer, up to its first batch."""
    from nnunetv2.run.run_training import get_trainer_from_args

    from nnunet_collab.core.shipped import doorway_folder

    os.environ.update(nnUNet_extTrainer=str(doorway_folder()))
    trainer = get_trainer_from_args("1", configuration, "all", name, "nnUNetPlans", device=torch.device(device))
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.network.train()
    return trainer


def count_waits(trainer: Any) -> int:
    """Synchronizations of one step that torch reports."""
    batch = next(trainer.dataloader_train)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _step(trainer: Any) -> tuple[float, float]:
    """Loss of one step, and the seconds that it waited for its batch."""
    start = time.monotonic()
    batch = next(trainer.dataloader_train)
    loaded = time.monotonic() - start
    return float(trainer.train_step(batch)["loss"]), loaded


def _synchronize(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
