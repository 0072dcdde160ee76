"""A student: any network that maps an image to logits, with taps that return its inner feature maps.

A tap is the dotted name of a submodule whose output is the wanted feature map, e.g. `encoder.stages.5`, or with
`:input` after it, whose input is. Taps are forward hooks, so that the network stays exactly the class that the plans
describe: its weights carry the same names as when it is trained alone, and it predicts without this wrapper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.pooling import average_pool
from nnunet_collab.core.types import StudentOutput
from nnunet_collab.networks.blueprint import is_unet
from nnunet_collab.networks.perturbation import OnlyTeaching, PerturbedPass, append_perturbed_passes
from nnunet_collab.networks.primus_entry import INPUT, is_primus


class Student(nn.Module):
    """Runs a network and returns `StudentOutput`.

    Args:
        name: The student's name; it appears in messages, logs and the published folder.
        network: Maps `(B, C_in, *S)` to logits `(B, C, *S)`, or to a list of logits of falling resolution.
        taps: Submodule names by level, of `encoder` and `decoder`; a level may be missing.
        frozen: If True the student only teaches: no gradient, always in evaluation mode.
        origin: Source of its initial weights, for the record.

    Raises:
        CollabError: If a tap names a submodule that the network does not have.
    """

    def __init__(
        self, name: str, network: nn.Module, taps: dict[str, str], *, frozen: bool = False, origin: str = ""
    ) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.taps = dict(taps)
        self.frozen = frozen
        self.origin = origin
        # Modules that a method trains with the student, such as a projection; they are not part of the published
        # network.
        self.heads = nn.ModuleDict()
        # Attributes, not a dict: torch.compile fails if one forward writes to a dict and reads a mapping proxy.
        self._further: list[str] = []
        self._encoder_map: Tensor | None = None
        self._decoder_map: Tensor | None = None
        self._recording = False
        self._perturbed_passes: tuple[PerturbedPass, ...] = ()
        self._only_teaching: OnlyTeaching | None = None
        self._teaching: Tensor | None = None
        self._taps = {level: _Tap(self, level) for level in taps}
        self._hooks = [self._hook(module_name, self._taps[level]) for level, module_name in taps.items()]
        # Features are perturbed after this layer; nnU-Net's networks and ours call it `encoder`.
        encoder = "encoder" if isinstance(getattr(network, "encoder", None), nn.Module) else ""
        encoder = f"up_projection{INPUT}" if is_primus(network) else encoder
        self.can_perturb = bool(encoder)
        if encoder:
            self._hooks.append(self._hook(encoder, _Perturb(self)))
        if frozen:
            self.requires_grad_(False).eval()

    def forward(
        self, image: Tensor, perturbed_passes: Sequence[PerturbedPass] = (), only_teaching: OnlyTeaching | None = None
    ) -> StudentOutput:
        """One training forward.

        Args:
            image: `(B, C_in, *S)`.
            perturbed_passes: Samples that pass the decoder once more, with perturbed features; see
                `networks.perturbation`.
            only_teaching: Samples that pass the decoder without gradient, or in the perturbed passes alone.

        Returns:
            Logits at full resolution, the tapped features, and the deep-supervision logits if they are switched on. The
            samples of the perturbed passes follow those of the batch, also in the auxiliary logits and the decoder's
            features.

        Raises:
            CollabError: If perturbed_passes or only_teaching are asked of a network without a submodule `encoder`.
        """
        if perturbed_passes or only_teaching:
            self.require_encoder()
        apart = only_teaching if self.decodes_apart else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            self._recording, self._perturbed_passes, self._only_teaching = True, tuple(perturbed_passes), apart
            try:
                output = self.network(image)
            finally:
                self._recording, self._perturbed_passes, self._only_teaching = False, (), None
                teaching, self._teaching = self._teaching, None
                encoder, decoder = self._encoder_map, self._decoder_map
                maps = tuple(getattr(self, name) for name in self._further)
                self._encoder_map = self._decoder_map = None
                for name in self._further:
                    setattr(self, name, None)
        outputs = list(output) if isinstance(output, (list, tuple)) else [output]
        result = StudentOutput(outputs[0], encoder, decoder, tuple(outputs[1:]), maps, teaching)
        return result if only_teaching is None or apart else _left_out(result, only_teaching)

    @property
    def decodes_apart(self) -> bool:
        """Whether some samples can pass the decoder for themselves: in one that is known, and without batch statistics.

        Other networks decode the whole batch together, and what only teaches is detached.
        """
        return is_unet(self.network) and not any(isinstance(m, _BatchNorm) for m in self.network.modules())

    def require_encoder(self) -> None:
        """Raise if features cannot be perturbed.

        Raises:
            CollabError: If the network has no submodule `encoder`.
        """
        if not self.can_perturb:
            raise CollabError(
                f"student {self.name!r}: features are perturbed between the encoder and the decoder, so the network "
                f"needs a submodule called 'encoder'; {type(self.network).__name__} has none. Use the planned UNet, a "
                f"SegFormer, a Primus or a semantic FPN."
            )

    @torch.no_grad()
    def probe(self, image: Tensor) -> StudentOutput:
        """The output for one image, to find the shapes of the maps; the student does not change.

        It runs in evaluation mode: in training mode the image would change the statistics of batch normalization.
        """
        mode = self.training
        self.eval()
        try:
            return self(image)  # type: ignore[no-any-return]
        finally:
            self.train(mode)

    @property
    def has_dropout(self) -> bool:
        """Whether the network has dropout of its own in training mode."""
        return any(
            isinstance(share, float) and share > 0
            for module in self.network.modules()
            for share in (
                getattr(module, "p", 0.0) if isinstance(module, _DropoutNd) else 0.0,
                getattr(module, "drop_path", 0.0),  # in our Mix Transformer
                getattr(module, "drop_prob", 0.0),  # in timm's networks
                getattr(module, "dropout", 0.0),  # in torch's attention
            )
        )

    def tap_further(self, names: Sequence[str]) -> None:
        """Return the outputs of these submodules, too, as `StudentOutput.maps`. Call it before the student is compiled.

        Raises:
            CollabError: If the network has no such submodule.
        """
        for name in names:
            level = f"further{len(self._further)}"
            setattr(self, f"_{level}_map", None)
            self._further.append(f"_{level}_map")
            self._hooks.append(self._hook(name, _Tap(self, level)))

    def _hook(self, name: str, hook: _Tap | _Perturb) -> RemovableHandle:
        """Let the hook see the output of a submodule, or its first input, and replace it if the hook returns one."""
        module = _submodule(self.name, self.network, name.removesuffix(INPUT))
        if name.endswith(INPUT):
            return module.register_forward_pre_hook(_OnInput(hook))
        return module.register_forward_hook(hook)

    def train(self, mode: bool = True) -> Student:
        """Switch the mode, unless the student is frozen: a teacher is never perturbed."""
        super().train(mode and not self.frozen)
        return self

    def pool_tap(self, level: str, size: tuple[int, ...]) -> None:
        """Return the map of a level average-pooled to `size`.

        The map is pooled at the tap and not in the loss. So when the full-resolution map gets its gradient, the
        network's own gradient exists already, and both are added in place.
        """
        self._taps[level].size = size

    def release(self) -> None:
        """Take all hooks off the network, so that another student can have it."""
        self.can_perturb = False
        for hook in self._hooks:
            hook.remove()

    def set_deep_supervision(self, enabled: bool) -> None:
        """Switch the auxiliary outputs of a network that has them (nnU-Net's convention: `network.decoder`)."""
        decoder = getattr(self.network, "decoder", None)
        if hasattr(decoder, "deep_supervision"):
            decoder.deep_supervision = enabled  # type: ignore[union-attr]


class _Tap:
    """Forward hook that keeps a submodule's output while the student records."""

    def __init__(self, student: Student, level: str) -> None:
        # In a list: a module held directly would become a submodule of the hook's owner when copied or pickled.
        self.student = [student]
        self.level = level
        self.size: tuple[int, ...] | None = None  # size to which the map is pooled

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        student = self.student[0]
        if student._recording:
            feature = output[-1] if isinstance(output, (list, tuple)) else output
            if self.size is not None:
                feature = average_pool(feature, self.size)
            setattr(student, f"_{self.level}_map", feature)


class _Perturb:
    """Forward hook that appends the perturbed features of the perturbed_passes to the encoder's output."""

    def __init__(self, student: Student) -> None:
        self.student = [student]

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        student = self.student[0]
        perturbed_passes, only_teaching = student._perturbed_passes, student._only_teaching
        if only_teaching is not None and only_teaching.decoded:
            with torch.no_grad():
                features = [f[only_teaching.start : only_teaching.stop] for f in output]
                logits = student.network.decoder(features)  # type: ignore[operator]
                student._teaching = logits[0] if isinstance(logits, (list, tuple)) else logits
        if not perturbed_passes and only_teaching is None:
            return None
        return append_perturbed_passes(output, perturbed_passes, only_teaching)


class _OnInput:
    """Forward pre-hook that shows a module's first input to a hook made for outputs.

    An object and not a function: when a student is copied, its hooks must belong to the copy.
    """

    def __init__(self, hook: _Tap | _Perturb) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        replaced = self.hook(module, (), args[0])
        return None if replaced is None else (replaced, *args[1:])


def _left_out(output: StudentOutput, samples: OnlyTeaching) -> StudentOutput:
    """The output as if these samples, which passed the decoder with the others, had not."""

    def others(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[: samples.start], tensor[samples.stop :]])

    return output._replace(
        logits=others(output.logits),
        decoder=None if output.decoder is None else others(output.decoder),
        auxiliary=tuple(map(others, output.auxiliary)),
        teaching=output.logits[samples.start : samples.stop].detach() if samples.decoded else None,
    )


def _submodule(student: str, network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        available = [n for n, _ in network.named_modules() if n and n.count(".") < 2]
        raise CollabError(
            f"student {student!r}: a tapped layer must exist in {type(network).__name__}; it has no {name!r}. "
            f"Its outer layers are: {', '.join(available[:40])}."
        ) from error
