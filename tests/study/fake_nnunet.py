"""nnU-Net's and this package's commands as a study calls them; all that they write follows from what they read.

A program of the folder that `studying.write_fakes` makes; which command it is follows from its own name. FAKE_LOG is a
file that gets a line per call. At the n-th of its points of no return, n being FAKE_DIES_AT, counted over all calls in
FAKE_COUNTER, a command dies as by `kill -9`, with a file half-written; FAKE_KILLS names a process that dies before it.
FAKE_WAITS_AT is a point at which a command waits to be ended.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

VARIABLES = os.environ
NAME, ARGUMENTS = Path(sys.argv[0]).name, sys.argv[1:]
STUDENTS = {"CrossTeachingTrainer": ("CNN", "Transformer"), "CTRCLTrainer": ("CNN", "Transformer")}
VALIDATION = ("v0", "v1")


def value(*flags):
    """What follows the flag, up to the next one."""
    begin = next(ARGUMENTS.index(flag) for flag in flags if flag in ARGUMENTS) + 1
    end = next((i for i in range(begin, len(ARGUMENTS)) if ARGUMENTS[i].startswith("-")), len(ARGUMENTS))
    return ARGUMENTS[begin:end]


def digest(*parts):
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:12]


def point():
    """One more place at which a command may die."""
    with open(os.environ["FAKE_COUNTER"], "a") as counter:
        counter.write(".")
        counter.flush()
        count = os.fstat(counter.fileno()).st_size
    if count == int(os.environ.get("FAKE_WAITS_AT", 0)):
        Path(os.environ["FAKE_COUNTER"]).with_name("waiting").write_text(str(os.getpid()))
        time.sleep(60)
    if count == int(os.environ.get("FAKE_DIES_AT", 0)):
        if os.environ.get("FAKE_KILLS"):
            os.kill(int(os.environ["FAKE_KILLS"]), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def write(path, content):
    """In place and in two halves, as most of nnU-Net's commands write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text[: len(text) // 2])
    point()
    path.write_text(text)


def write_whole(path, content):
    """Aside, then renamed, as this package writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    aside.write_text(content if isinstance(content, str) else json.dumps(content))
    point()
    aside.replace(path)


def preprocessed(dataset, *names):
    return Path(VARIABLES["nnUNet_preprocessed"], dataset, *names)


def name_of(number):
    """Name of the dataset with this id."""
    return next(
        p.name for p in Path(VARIABLES["nnUNet_raw"]).iterdir() if p.name.startswith(f"Dataset{int(number):03d}")
    )


def results(trainer, plans, configuration, dataset):
    return Path(VARIABLES["nnUNet_results"], dataset, f"{trainer}__{plans}__{configuration}")


def train():
    dataset, configuration, fold = ARGUMENTS[:3]
    (trainer,), (plans,) = value("-tr"), value("-p")
    stock = "nnUNet_collab_settings" not in VARIABLES
    settings = {"epochs": 2} if stock else json.loads(VARIABLES["nnUNet_collab_settings"])
    title = trainer if stock else f"{trainer}_{settings['run_name']}"
    run = results(title, plans, configuration, dataset)
    learned = dict(settings)
    if "-pretrained_weights" in ARGUMENTS:
        assert "--c" not in ARGUMENTS  # nnU-Net refuses both
        learned["from"] = Path(value("-pretrained_weights")[0]).read_text()
    learns_from = preprocessed(dataset, f"{plans}_{configuration}")
    learned["data"] = learns_from.read_text() if learns_from.exists() else ""
    final, latest = (run / f"fold_{fold}" / f"checkpoint_{name}.pth" for name in ("final", "latest"))
    write_whole(run / "plans.json", {"nnunet_collab": {"settings": settings}})
    epochs = json.loads(latest.read_text()) if "--c" in ARGUMENTS and latest.exists() else []
    if final.exists() and "--c" in ARGUMENTS:
        epochs = json.loads(final.read_text())
    while len(epochs) < settings["epochs"]:
        if epochs and stock:  # the weights that it started from are in its checkpoint
            learned["from"] = epochs[0]
        epochs.append(digest(epochs, json.dumps(learned, sort_keys=True), trainer, fold))
        if len(epochs) == 1:
            write_whole(run / f"fold_{fold}" / "checkpoint_best.pth", epochs)
        write_whole(latest, epochs)
        write_whole(run / f"fold_{fold}" / "curves.json", {"epochs": list(range(len(epochs)))})
    write_whole(final, epochs)
    students = [title] if stock else [f"{title}_{name}" for name in STUDENTS.get(trainer, ("CNN",))]
    folders = [results(name, plans, configuration, dataset) for name in students]
    for folder in folders if not stock else ():
        write_whole(folder / f"fold_{fold}" / "checkpoint_final.pth", [*epochs, folder.name])
        write_whole(folder / f"fold_{fold}" / "checkpoint_best.pth", [*epochs[:1], folder.name])
    if len(folders) > 1 and settings["validate_ensemble"]:
        folders.append(run)
    for folder in folders:
        checkpoint = (folder / f"fold_{fold}" / "checkpoint_final.pth").read_text()
        for case in VALIDATION:
            write(folder / f"fold_{fold}" / "validation" / f"{case}.nii.gz", digest(checkpoint, case))
        dice = json.loads(VARIABLES.get("FAKE_DICE", "{}")).get(
            f"{dataset} {plans}", int(digest(checkpoint), 16) / 16**12
        )
        write(folder / f"fold_{fold}" / "validation" / "summary.json", {"foreground_mean": {"Dice": dice}})


def cases_of(folder):
    return sorted(path.name.removesuffix("_0000.nii.gz") for path in Path(folder).glob("*_0000.nii.gz"))


def predict():
    (dataset,), (configuration,), (plans,), (trainer,) = value("-d"), value("-c"), value("-p"), value("-tr")
    (images,), (output,) = value("-i"), value("-o")
    model = results(trainer, plans, configuration, dataset)
    checkpoint = value("-chk")[0] if "-chk" in ARGUMENTS else "checkpoint_final.pth"
    weights = [(model / f"fold_{fold}" / checkpoint).read_text() for fold in value("-f")]
    named = {"dataset_name": dataset, "plans_name": plans}
    for name, content in (
        ("dataset", {"file_ending": ".nii.gz"}),
        ("plans", named),
        ("predict_from_raw_data_args", {}),
    ):
        write(Path(output, f"{name}.json"), content)
    for case in cases_of(images):
        write(Path(output, f"{case}.nii.gz"), digest(weights, Path(images, f"{case}_0000.nii.gz").read_text()))


def accumulate():
    (configuration,), (plans,), (trainer,), (output,) = value("-c"), value("-p"), value("-tr"), value("-o")
    model = results(trainer, plans, configuration, ARGUMENTS[0])
    for fold in value("-f"):
        for path in sorted((model / f"fold_{fold}" / "validation").glob("*.nii.gz")):
            write(Path(output, path.name), path.read_text())


def determine():
    (folder,), (labels,) = value("-i"), value("-ref")
    assert Path(labels).is_dir()
    assert "--remove_postprocessed" in ARGUMENTS
    found = digest(*(path.read_text() for path in sorted(Path(folder).glob("*.nii.gz"))))
    for name in ("postprocessing.pkl", "postprocessing.json"):
        write(Path(folder, name), [found])


def apply():
    (source,), (output,), (pickled,) = value("-i"), value("-o"), value("-pp_pkl_file")
    for path in sorted(Path(source).glob("*.nii.gz")):
        write(Path(output, path.name), digest(path.read_text(), Path(pickled).read_text()))


def evaluate():
    (predictions,), (labels,), (output,) = value("-p"), value("-l"), value("-o")
    lines = ["case,class,statistic,dice"]
    for path in sorted(Path(predictions).glob("*.nii.gz")):
        dice = int(digest(path.read_text(), Path(labels, path.name).read_text()), 16) / 16**12
        lines.append(f"{path.name},organ,case,{dice}")
    lines.append(f",mean of classes,mean,{int(digest(lines), 16) / 16**12}")
    write_whole(Path(output), "\n".join(lines))


def report():
    sources = [Path(word) for word in ARGUMENTS[1 : ARGUMENTS.index("-o")]]
    (output,), (baseline,) = value("-o"), value("--baseline")
    assert baseline in [path.name for path in sources]
    assert Path(output).parent.is_dir()
    assert "--overwrite" in ARGUMENTS or not Path(output).exists()
    texts = []
    for path in sources:
        table = path.with_name(f"{path.name}.csv")
        found = [table] if table.exists() else sorted(path.glob("fold_*/validation/summary.json"))
        assert found, path
        texts += [f"{path.name} {one.read_text()}" for one in found]
    write_whole(Path(output, "report.html"), "\n".join([baseline, *texts]))


def preprocess():
    (number,), (plans,), (configuration,) = value("-d"), value("-plans_name"), value("-c")
    dataset = name_of(number)
    assert preprocessed(dataset, f"{plans}.json").is_file()
    raw = Path(VARIABLES["nnUNet_raw"], dataset)
    labels = [path.read_text() for path in sorted((raw / "labelsTr").glob("*"))]
    write(preprocessed(dataset, f"{plans}_{configuration}"), digest((raw / "dataset.json").read_text(), labels))


def move_plans():
    (source,), (target,), (old,), (new,) = value("-s"), value("-t"), value("-sp"), value("-tp")
    plans = json.loads(preprocessed(source, f"{old}.json").read_text())
    write(preprocessed(target, f"{new}.json"), {**plans, "plans_name": new})


def pseudo_label():
    (source,), (plans,), (number,), (name,), (turn,) = (value(f) for f in ("-d", "-p", "--to", "--name", "--round"))
    kept = {flag: float(value(f"--{flag}")[0]) if f"--{flag}" in ARGUMENTS else None for flag in ("share", "threshold")}
    raw = Path(VARIABLES["nnUNet_raw"], f"Dataset{int(number):03d}_{name}")
    assert not raw.exists()
    aside = raw.with_name(f".{raw.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    members = [Path(folder) for folder in value("--members")]
    for path in sorted(Path(value("--ensemble")[0]).glob("*.nii.gz")):
        write(aside / "labelsTr" / path.name, digest(path.read_text(), *((m / path.name).read_text() for m in members)))
    cases = {path.name.removesuffix(".nii.gz"): path.read_text() for path in sorted((aside / "labelsTr").iterdir())}
    mark = {"of": source, "round": int(turn), **kept, "members": [m.name for m in members], "cases": cases}
    mark["all_identical"] = "FAKE_IDENTICAL" in VARIABLES
    mark["absent_classes"] = VARIABLES.get("FAKE_ABSENT", "").split()
    content = {"file_ending": ".nii.gz", "labels": {"background": 0, "organ": 1}, "pseudo_labels": mark}
    write(aside / "dataset.json", {**content, "channel_names": {"0": "MRI"}})
    write_whole(preprocessed(raw.name, f"{plans}.json"), json.loads(preprocessed(source, f"{plans}.json").read_text()))
    point()
    aside.rename(raw)


def collab():
    globals()[ARGUMENTS[0]]()


with open(os.environ["FAKE_LOG"], "a") as log:
    names = ("nnUNet_collab_settings", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    counter = Path(os.environ["FAKE_COUNTER"])
    found = {name: os.environ.get(name) for name in names}
    found["points"] = counter.stat().st_size if counter.exists() else 0  # passed before this command
    log.write(json.dumps([NAME, ARGUMENTS, found]) + "\n")
{
    "nnUNetv2_train": train,
    "nnUNetv2_predict": predict,
    "nnUNetv2_preprocess": preprocess,
    "nnUNetv2_move_plans_between_datasets": move_plans,
    "nnUNetv2_accumulate_crossval_results": accumulate,
    "nnUNetv2_determine_postprocessing": determine,
    "nnUNetv2_apply_postprocessing": apply,
    "nnunet_collab": collab,
}[NAME]()
