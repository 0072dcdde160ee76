"""Checkpoints: nothing is lost on the way to disk and back, and what does not fit is refused with a reason."""

from __future__ import annotations

import errno
import pickle
import random
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError

CHECKPOINT = {
    "network_weights": OrderedDict(w=torch.arange(6.0).reshape(2, 3)),
    "logging": {"dice": [np.float64(0.5), np.float32(0.25)], "step": np.int64(3), "ok": np.bool_(True)},
    "init_args": {"device": torch.device("cuda", 1), "folder": Path("a/b"), "fold": 0},
    "trainer_name": "CTRCLTrainer",
    checkpoints.KEY: {"settings": {"beta": 3.0, "seed": 0}, "iteration": 7},
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    checkpoints.save(path, CHECKPOINT)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_through_weights_only_loading(path):
    loaded = checkpoints.load(path)
    assert torch.equal(loaded["network_weights"]["w"], CHECKPOINT["network_weights"]["w"])
    assert loaded["logging"] == {"dice": [0.5, 0.25], "step": 3, "ok": True}
    assert loaded["init_args"] == {"device": "cuda:1", "folder": str(Path("a/b")), "fold": 0}
    assert loaded[checkpoints.KEY] == CHECKPOINT[checkpoints.KEY]
    assert names(path.parent) == [path.name]


def test_plain_values_are_pythons_own():
    value = checkpoints.plain(
        {np.str_("k"): (np.int32(1), [np.float32(2.5)], {"x": np.bool_(False)}), "a": np.array([1, 2]), "t": None}
    )
    assert value["k"] == (1, [2.5], {"x": False})
    key, (number, (rate,), inner) = next(iter(value.items()))
    assert [type(v) for v in (key, number, rate, inner["x"])] == [str, int, float, bool]
    assert value["a"].tolist() == [1, 2]
    assert isinstance(value["a"], torch.Tensor)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk_leaves_the_checkpoint_of_before(path, monkeypatch, error):
    def fail(_, file):
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(
        CollabError,
        match=r"checkpoint_latest\.pth: could not be written .* The file that was there before is untouched",
    ):
        checkpoints.save(path, {**CHECKPOINT, "trainer_name": "Other"})
    assert names(path.parent) == [path.name]
    assert checkpoints.load(path)["trainer_name"] == "CTRCLTrainer"


@pytest.mark.parametrize("left", [0, 1, 2, 100, 0.5, -1])
def test_a_truncated_file_is_refused(path, left):
    content = path.read_bytes()
    path.write_bytes(content[: round(left * len(content)) if isinstance(left, float) else left])
    with pytest.raises(CollabError) as caught:
        checkpoints.load(path)
    message = str(caught.value)
    assert message.startswith(f"checkpoint {path}: must be a complete file of this package; reading it failed (")
    assert "failed ()" not in message
    assert "continue from another checkpoint of the folder, or train again from the start" in message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damage_of_any_kind_is_refused_in_the_same_way(path):
    generator = random.Random(0)
    for _ in range(300):
        start = generator.choice([b"", b"\x80\x02", b"PK\x03\x04", b"\x80\x02}"])
        path.write_bytes(start + generator.randbytes(generator.randrange(30)))
        with pytest.raises(CollabError, match=r"must be a complete file of this package|must have been written by"):
            checkpoints.load(path)


def test_a_text_file_and_a_missing_one_are_told_apart(path):
    path.write_text("this is not a checkpoint")
    with pytest.raises(CollabError, match="must be a complete file of this package"):
        checkpoints.load(path)
    path.unlink()
    with pytest.raises(CollabError, match=r"there is no such file\. Train first, or check the path"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"network_weights": {}}, "written by a trainer of nnunet_collab; it has no 'nnunet_collab' entry"),
        ([1, 2], "must hold a dictionary; it holds a list"),
        (torch.zeros(2), "must hold a dictionary; it holds a Tensor"),
    ],
)
def test_a_file_of_another_trainer_is_refused(path, content, message):
    torch.save(content, path)
    with pytest.raises(CollabError, match=message):
        checkpoints.load(path)


def test_one_flipped_bit_of_a_tensor_is_seen(path):
    """Torch itself loads such a file without a word."""
    content = bytearray(path.read_bytes())
    place = content.index(np.arange(6, dtype=np.float32).tobytes())
    for bit in (8 * place, 8 * place + 100, 8 * place + 191):
        flipped = content.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        torch.load(path, weights_only=True)
        with pytest.raises(CollabError, match=r"the checksum of .*data/0 is wrong"):
            checkpoints.load(path)


def stock_checkpoint():
    """What nnU-Net's own trainer writes: numpy's numbers in its curves, the device among its arguments."""
    curves = {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "lrs": [0.01], "n": [np.int64(3), np.bool_(True)]}
    return {
        "network_weights": {"w": torch.ones(2)},
        "logging": curves,
        "_best_ema": np.float64(0.5),
        "init_args": {"device": torch.device("cuda", 0), "fold": 0},
        "trainer_name": "nnUNetTrainer",
    }


def test_nnunets_own_checkpoint_is_read_without_running_its_code(path):
    torch.save(stock_checkpoint(), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # without the safe names
    loaded = checkpoints.read(path)
    assert torch.equal(loaded["network_weights"]["w"], torch.ones(2))
    assert loaded["logging"] == stock_checkpoint()["logging"]
    assert loaded["init_args"]["device"] == torch.device("cuda", 0)


def test_the_safe_names_do_not_stay_behind(path):
    before = set(torch.serialization.get_safe_globals())
    checkpoints.read(path)
    assert set(torch.serialization.get_safe_globals()) == before


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("load", [checkpoints.read, checkpoints.load, checkpoints.load_training])
@pytest.mark.parametrize("archive", [True, False])
def test_loading_runs_no_code_of_the_file(path, tmp_path, load, archive):
    content = {checkpoints.KEY: _Runs(tmp_path / "ran")}
    torch.save(content, path) if archive else path.write_bytes(pickle.dumps(content, protocol=2))
    message = "it also holds builtins.getattr, pathlib.Path" if archive else "must be a complete file of this package"
    with pytest.raises(CollabError, match=message):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_the_documented_way_makes_a_file_that_is_read(path, tmp_path):
    """The lines of docs/troubleshooting.md, with the names of this test's files."""
    torch.save({"network_weights": {"w": torch.ones(2)}, "logging": _Runs(tmp_path / "ran")}, path)
    text = Path(__file__).parents[2].joinpath("docs", "troubleshooting.md").read_text()
    code = text.split("A checkpoint that would run code")[1].split("```python")[1].split("```")[0]
    assert "old.pth" in code
    exec(code.replace("old.pth", str(path)).replace("new.pth", str(tmp_path / "new.pth")))
    assert torch.equal(checkpoints.read(tmp_path / "new.pth")["network_weights"]["w"], torch.ones(2))


def test_another_trainer_or_other_settings_do_not_fit(path):
    checkpoint = checkpoints.load(path)
    checkpoints.check_fits(path, checkpoint, "CTRCLTrainer", {"beta": 3.0, "seed": 0})
    with pytest.raises(
        CollabError, match=r"must have been written by OtherTrainer, which runs now; CTRCLTrainer wrote it"
    ):
        checkpoints.check_fits(path, checkpoint, "OtherTrainer", {"beta": 3.0, "seed": 0})
    with pytest.raises(CollabError) as caught:
        checkpoints.check_fits(path, checkpoint, "CTRCLTrainer", {"beta": 2.0, "seed": 1})
    assert "\n  beta: 2.0 here, 3.0 there\n  seed: 1 here, 0 there\n" in str(caught.value)
    assert "Set nnUNet_collab_settings as it was, or start a new training under another run_name" in str(caught.value)


def draws():
    """A number of each kind, the kinds that generators keep a second one of included."""
    return [
        [random.random(), random.gauss(0, 1), random.randrange(10**9)],
        [np.random.normal(), np.random.rand(), np.random.randint(10**9)],  # noqa: NPY002
        [torch.rand(()).item(), torch.randn(()).item()],
    ]


@pytest.mark.parametrize("already_drawn", [0, 1, 2])
def test_random_sequences_continue_identically_after_a_round_trip(path, already_drawn):
    for _ in range(already_drawn):
        draws()
    checkpoints.save(path, {checkpoints.KEY: {"random_states": checkpoints.random_states()}})
    want = [draws() for _ in range(700)]  # beyond the 624 numbers that a Mersenne twister makes at once
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    checkpoints.restore_random_states(checkpoints.load(path)[checkpoints.KEY]["random_states"])
    assert [draws() for _ in range(700)] == want
