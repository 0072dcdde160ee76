"""torch.compile changes nothing but the speed, and a compiler that fails costs one line in the log."""

from __future__ import annotations

import pytest
import torch
from teaching import make_method
from tiny import build_tiny_students, make_semi_supervised_batch
from torch import nn

from nnunet_collab.methods.mean_teacher import MeanTeacherTrainer
from nnunet_collab.training.compilation import compile_students
from nnunet_collab.training.settings import CNN

IMAGE = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def use_backend(monkeypatch):
    """Let `Module.compile()` use this backend instead of the default one, which would start a C++ compiler."""
    compile_module = nn.Module.compile

    def use(backend):
        torch.compiler.reset()
        monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=backend))

    return use


def test_a_compiled_student_has_the_same_names_outputs_and_gradients(use_backend):
    use_backend("eager")
    group, plain, log = build_tiny_students(CNN), build_tiny_students(CNN), []
    compile_students(group, log.append)
    assert list(group.state_dict()) == list(plain.state_dict())
    for students in (group, plain):
        output = students(IMAGE)["CNN"]
        (output.logits.sum() + output.encoder.square().sum() + output.decoder.mean()).backward()
    assert all(map(torch.equal, group(IMAGE)["CNN"][:3], plain(IMAGE)["CNN"][:3]))
    for compiled, eager in zip(group.parameters(), plain.parameters(), strict=True):
        assert (compiled.grad is None) == (eager.grad is None)
        assert compiled.grad is None or torch.equal(compiled.grad, eager.grad)
    assert log == ["student CNN: compiled with torch.compile"]


def test_a_compiler_that_fails_is_told_once_and_the_student_goes_on(use_backend):
    calls = []

    def broken(graph, inputs):
        calls.append(graph)
        raise RuntimeError("no C++ compiler\nand more")

    use_backend(broken)
    group, plain, log = build_tiny_students(CNN), build_tiny_students(CNN), []
    compile_students(group, log.append)
    for _ in range(3):
        output = group(IMAGE)["CNN"]
        assert all(map(torch.equal, output[:3], plain(IMAGE)["CNN"][:3]))
    assert len(calls) == 1
    assert len(log) == 2
    assert log[1].startswith("WARNING: student CNN: torch.compile failed (")
    assert "no C++ compiler" in log[1]
    assert "\n" not in log[1]
    assert log[1].endswith("); training continues without it.")


def test_an_error_of_the_network_itself_comes_through(use_backend):
    use_backend("eager")
    group = build_tiny_students(CNN)
    compile_students(group, [].append)
    group(IMAGE)
    with pytest.raises(RuntimeError, match=r"[Ss]izes|channels"):
        group(torch.randn(2, 3, 32, 32))


def test_the_teacher_is_compiled_like_the_student_it_averages(use_backend, tmp_path, monkeypatch, capsys):
    use_backend("eager")
    monkeypatch.setattr(MeanTeacherTrainer, "_do_i_compile", lambda self: True)
    trainer = make_method(MeanTeacherTrainer, tmp_path, monkeypatch)
    for group in (trainer.group, trainer.teacher.group):
        assert group["CNN"]._compiled_call_impl is not None
    out = capsys.readouterr().out
    assert out.count("student CNN: compiled with torch.compile") == 2
    assert out.count("teacher of student CNN: compiled with torch.compile") == 1
    trainer.train_step(make_semi_supervised_batch(trainer))
    assert trainer.teacher.updates == 1
