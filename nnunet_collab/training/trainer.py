"""The life cycle of a training that all methods share, on top of nnU-Net's trainer.

A method gives its settings and `loss_terms`; the rest happens here: the students are built from the plans, trained with
an optimizer each, logged, checkpointed and published. nnU-Net calls the hooks in this order: `__init__`,
`load_checkpoint` (with --c or --val), `on_train_start`, per epoch the train and validation steps, `on_train_end`,
`perform_actual_validation`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn
from torch.amp import GradScaler

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.distributed import gather_objects, rank, world_size
from nnunet_collab.core.nnunet_folders import SPLIT_FILE
from nnunet_collab.core.presets import settings_from_environment
from nnunet_collab.core.settings import to_json
from nnunet_collab.core.types import StudentOutput, Term, Truth
from nnunet_collab.data.augmentation import flips_and_rotations_only, without_timing
from nnunet_collab.data.loaders import BatchSource, in_background
from nnunet_collab.inference.publish import CHECKPOINTS, publish_fold
from nnunet_collab.networks.group import StudentGroup
from nnunet_collab.training import checkpointing, distributed, planning, preflight, pretrained_flag
from nnunet_collab.training.case_files import check_case_files
from nnunet_collab.training.case_roles import CaseRoles, check_patients, deal_by_patient, refuse_missing
from nnunet_collab.training.compilation import compile_students
from nnunet_collab.training.curves import Curves
from nnunet_collab.training.guard import NonFiniteGuard
from nnunet_collab.training.memory import out_of_memory
from nnunet_collab.training.metrics import agreement_counts, overlap_counts, predicted_masks, true_masks
from nnunet_collab.training.optimization import StudentOptimizers
from nnunet_collab.training.results_folders import ResultsFolders
from nnunet_collab.training.settings import TrainingSettings
from nnunet_collab.training.step import IMAGES, Reading, RunningStatistics, cases_of, read_step
from nnunet_collab.training.students import build_ensemble, build_students
from nnunet_collab.training.supervision import drop_lowest_resolution, read_truth, supervised_loss
from nnunet_collab.training.threads import honor_omp_threads
from nnunet_collab.training.validation import networks_to_validate

TRAINING, VALIDATION = 0, 1  # streams of batches


class CollabTrainer(nnUNetTrainer):  # type: ignore[misc]
    """Base of all trainers of this package; a method overrides `settings` and `loss_terms`.

    Users change the settings by subclassing, `settings = replace(CTRCLTrainer.settings, beta=2.0)`, or with the
    environment variable `nnUNet_collab_settings`; see `core.presets`.
    """

    settings: ClassVar[TrainingSettings] = TrainingSettings()
    # Feature maps that the method learns from: "encoder", "decoder". Students return no others.
    feature_levels: ClassVar[tuple[str, ...]] = ()

    # Attributes that nnU-Net makes, for type checkers.
    was_initialized: bool
    current_epoch: int
    batch_size: int
    grad_scaler: GradScaler | None
    _best_ema: float | None
    output_folder: str
    output_folder_base: str

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net inspects this very signature)
    ) -> None:
        """Check everything that can be checked before anything is written.

        Raises:
            CollabError: If a path of nnU-Net is not set, a setting is wrong, or the configuration cannot be trained.
        """
        preflight.check_environment()
        self.trainer_name = type(self).__name__
        settings = settings_from_environment(type(self).settings, type(self))
        self.check(settings)
        self.given_weights = pretrained_flag.read_flag(sys.argv[1:], settings)
        self.weights_from: dict[str, str] | None = None  # of the checkpoint from which the training continues
        planning.adapt_plans(plans, configuration, settings, self.trainer_name, dataset_json)
        if settings.run_name:
            # nnU-Net names the results folder after the class, so a named run gets a class of that name.
            self.__class__ = type(f"{self.trainer_name}_{settings.run_name}", (type(self),), {})
        super().__init__(plans, configuration, fold, dataset_json, device)
        honor_omp_threads(device)
        self.settings: TrainingSettings = settings  # type: ignore[misc]
        self.plans_manager.plans[planning.KEY]["regions"] = self.label_manager.has_regions
        self.num_epochs = settings.epochs
        self.num_iterations_per_epoch = settings.iterations_per_epoch
        self.num_val_iterations_per_epoch = settings.val_iterations_per_epoch
        self.save_every = settings.save_every
        self.enable_deep_supervision = settings.deep_supervision and planning.has_lower_outputs(
            self.plans_manager, configuration
        )
        self.iteration = 0  # counted over the whole run; every schedule and every seed depends on it
        self.guard = NonFiniteGuard(settings.max_bad_steps, self.print_to_log_file)
        self.curves = Curves(self.logger, settings.start_epoch)
        self.case_roles = CaseRoles()
        self._resume_states: dict[str, Any] | None = None
        self.results = ResultsFolders(
            Path(self.output_folder), settings.published, self.print_to_log_file, first=self.rank == 0
        )
        if self.is_ddp:
            self.device, self.grad_scaler = distributed.local_device(device, self.grad_scaler)

    def check(self, settings: TrainingSettings) -> None:
        """Refuse settings that the method cannot train with; overridden by methods.

        Raises:
            CollabError: If there are any; the message says which and why.
        """

    def batch_terms(self, batch: dict[str, Any]) -> list[Term]:
        """Terms of the total loss of one batch, from one forward pass of all students."""
        image, target, truth = self._to_device(batch)
        return self.loss_terms(self.network(image), target, truth)

    def loss_terms(self, outputs: dict[str, StudentOutput], target: Tensor | list[Tensor], truth: Truth) -> list[Term]:
        """Terms of the total loss; the base class trains every student separately.

        Args:
            outputs: Output of every student, by name.
            target: Target as nnU-Net's loader delivers it.
            truth: The target at full resolution, in the form that losses take.
        """
        return [
            Term(s.name, "supervised", 1.0, self.supervised(outputs[s.name], target))
            for s in self.settings.students
            if not s.frozen
        ]

    @property
    def rank(self) -> int:
        """Number of this process among all processes of the run. nnU-Net's `local_rank` means this up to 2.8 only."""
        return rank()

    @property
    def deployed(self) -> StudentGroup:
        """The networks that are validated, published and used for prediction: the students, or their averages."""
        return self.group

    def add_heads(self) -> None:
        """Add taps and heads to the students, before they are compiled and get their optimizers."""

    def after_step(self) -> None:
        """Called after every iteration in which all students took their step."""

    def method_state(self) -> dict[str, Any]:
        """State of the method, besides the students, that an exact resume needs: plain values and tensors."""
        return {}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore what `method_state` returned."""

    # ---------------------------------------------------------------- building

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The ensemble of the students, for nnU-Net's predictor; training builds its own in `initialize`."""
        record = plans_manager.plans[planning.KEY]
        return build_ensemble(record["students"], num_input_channels, num_output_channels, regions=record["regions"])

    def initialize(self) -> None:
        """Build students, loss and optimizers; equal on every rank and in every run with this seed."""
        if self.was_initialized:
            raise RuntimeError("CollabTrainer.initialize: must be called once; it was called again.")
        preflight.check_processes(self.configuration_manager, world_size())
        self._set_batch_size_and_oversample()
        torch.manual_seed(self.settings.seed)
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        self.group: StudentGroup = build_students(
            self.settings.students,
            self.plans_manager.plans[planning.KEY]["students"],
            input_channels=self.num_input_channels,
            num_outputs=self.label_manager.num_segmentation_heads,
            patch_size=self.configuration_manager.patch_size,
            deep_supervision=self.enable_deep_supervision,
            device=self.device,
            log=self.print_to_log_file,
            levels=self.feature_levels,
            given=self.given_weights,
            weights_from=self.weights_from,
        )
        self.plans_manager.plans[planning.KEY]["weights_from"] = {s.name: s.origin for s in self.group}
        self.add_heads()
        self.loss = self._build_loss()
        self.supervised = supervised_loss(self.loss)
        if self._do_i_compile():
            compile_students(self.group, self.print_to_log_file)
        self.wrapped = distributed.wrap(self.group, self.device) if self.is_ddp else self.group
        # nnU-Net loads the file of -pretrained_weights into `network`, once more, before the training starts.
        self.network: nn.Module = pretrained_flag.nothing() if self.given_weights else self.wrapped
        self.optimizers = StudentOptimizers(self.group, self.settings, self.grad_scaler)
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        self.was_initialized = True
        # Dropout must differ between ranks, weights must not.
        torch.manual_seed(self.settings.seed + 1 + self.rank)

    def _build_loss(self) -> nn.Module:
        loss: nn.Module = super()._build_loss()
        drop_lowest_resolution(loss)
        if self.settings.seg_loss == "ce":
            (loss.loss if self.enable_deep_supervision else loss).weight_dice = 0  # type: ignore[union-attr]
        return loss

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch the auxiliary outputs of every student that has them."""
        for student in self.group:
            student.set_deep_supervision(enabled and self.enable_deep_supervision and not student.frozen)

    def plot_network_architecture(self) -> None:
        """Do nothing: nnU-Net's plot shows a single network, and needs a package that no longer works."""

    # ---------------------------------------------------------------- data

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split; in a distributed run only the first process creates the file.

        If there is no split yet and the dataset says who the patients are, the folds are made by patient.

        Raises:
            CollabError: If a case is not preprocessed, a patient has two roles, or a continued run started with other
                cases.
        """
        splits = Path(self.preprocessed_dataset_folder_base, SPLIT_FILE)
        folder = Path(self.preprocessed_dataset_folder)
        if self.is_ddp and self.rank != 0:
            dist.barrier()
        elif self.fold != "all" and deal_by_patient(splits, folder, self.dataset_json):
            self.print_to_log_file(f"There was no {splits}: created folds by patient.")
        unlabeled = preflight.unlabeled_in_split(
            splits, self.fold
        )  # before nnU-Net reads a file that is not a valid split
        split: tuple[list[str], list[str]] = super().do_split()
        if self.is_ddp and self.rank == 0:
            dist.barrier()
        roles = dict(zip(("train", "val"), map(list, split), strict=True))
        if self.fold != "all":  # for fold `all`, nnU-Net validates on the training cases
            labeled = [*roles["train"], *roles["val"]]
            missing = [case for case in labeled if not (folder / f"{case}.pkl").is_file()]
            refuse_missing(f"{splits}, fold {self.fold}", missing, folder)
            check_patients(
                f"{splits}, fold {self.fold}", {**roles, "unlabeled": unlabeled}, self.dataset_json, splits.parent
            )
        for role, cases in roles.items():
            self.case_roles.require_same_cases(role, cases)
        return split

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's datasets. All files are read once, to find damaged files and wrong labels before the training."""
        train, val = super().get_tr_and_val_datasets()
        if self.rank == 0:
            truth = Path(self.preprocessed_dataset_folder_base, "gt_segmentations")
            check_case_files(train, val, self.label_manager, self.dataset_json, truth, self.print_to_log_file)
        return train, val

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """nnU-Net's transforms, or its flips and rotations alone."""
        planned = without_timing(super().get_training_transforms(*args, **kwargs))
        return planned if self.settings.augmentation == "nnunet" else flips_and_rotations_only(planned)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Training and validation batches that a seed and an iteration number determine."""
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        scales = self._get_deep_supervision_scales()
        labels = {
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            "ignore_label": self.label_manager.ignore_label,
        }
        patch_size = self.configuration_manager.patch_size
        train_transforms = self.get_training_transforms(
            patch_size, rotation, scales, mirror_axes, dummy_2d,
            use_mask_for_norm=self.configuration_manager.use_mask_for_norm, **labels,
        )  # fmt: skip
        val_transforms = self.get_validation_transforms(scales, **labels)
        train_data, val_data = self.get_tr_and_val_datasets()
        workers = get_allowed_n_proc_DA()
        train_source = self.training_source(train_data, initial_patch_size, train_transforms)
        train = self._batches(train_source, TRAINING, self.iteration, workers)
        val_source = self.labeled_source(val_data, self.batch_size, patch_size, val_transforms)
        done = self.current_epoch * self.num_val_iterations_per_epoch
        val = self._batches(val_source, VALIDATION, done, -(-workers // 2))
        # Draw and discard the first batch of each, as nnU-Net does, to find a broken worker now.
        next(train), next(val)
        return train, val

    def training_source(self, data: Any, patch_size: Any, transforms: Any) -> BatchSource:
        """The source of the training batches."""
        return self.labeled_source(data, self.batch_size, patch_size, transforms)

    def labeled_source(
        self,
        data: Any,
        batch_size: int,
        patch_size: Any,
        transforms: Any,
        loader: type[nnUNetDataLoader] = nnUNetDataLoader,
    ) -> BatchSource:
        """nnU-Net's data loader, or a subclass; `patch_size` is the size of the crops before augmentation."""
        source: BatchSource = loader(
            data,
            batch_size,
            patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=transforms,
        )
        return source

    def _batches(self, source: BatchSource, stream: int, start: int, workers: int) -> Any:
        key = (self.settings.seed, stream, self.rank)
        return in_background(source, key, start=start, workers=workers, pin_memory=self.device.type == "cuda")

    def _to_device(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | list[Tensor], Truth]:
        image, target = batch["data"].to(self.device, non_blocking=True), batch["target"]
        if isinstance(target, list):
            target = [t.to(self.device, non_blocking=True) for t in target]
        else:
            target = target.to(self.device, non_blocking=True)
        truth = read_truth(
            target, has_regions=self.label_manager.has_regions, ignore_label=self.label_manager.ignore_label
        )
        return image, target, truth

    def _autocast(self) -> torch.autocast:
        # As in nnU-Net: mixed precision only on CUDA.
        return torch.autocast(self.device.type, enabled=self.device.type == "cuda")

    # ---------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """Refuse to overwrite another run, then start as nnU-Net does, with the random states of a resumed run."""
        self.results.hold()
        self._refuse_to_overwrite()
        splits = Path(self.preprocessed_dataset_folder_base, SPLIT_FILE)
        preflight.check_cases(Path(self.preprocessed_dataset_folder), None if self.fold == "all" else splits)
        preflight.check_fold(splits, self.fold)
        super().on_train_start()
        self.network, self.given_weights = self.wrapped, {}
        if self.iteration == 0:
            cases = (path.stem for path in Path(self.preprocessed_dataset_folder).glob("*.pkl"))
            self.results.start_anew(cases, self.dataset_json["file_ending"])
        self.print_to_log_file("settings:", to_json(self.settings), add_timestamp=False)
        if self._resume_states is not None:
            checkpoints.restore_random_states(self._resume_states)

    def _refuse_to_overwrite(self) -> None:
        """Raise if a training with other settings is in the folder: its results would be replaced silently."""
        if self.iteration > 0 or self.rank != 0:
            return
        for name in ("checkpoint_final.pth", "checkpoint_latest.pth"):
            path = Path(self.output_folder, name)
            if path.is_file():
                checkpoints.check_fits(path, checkpoints.load_training(path), self.trainer_name, to_json(self.settings))
        preflight.check_other_folds(Path(self.output_folder), self.plans_manager.plans, self.configuration_name)

    def on_train_epoch_start(self) -> None:
        """Switch to training mode, and log the learning rates."""
        self.network.train()
        rates = self.optimizers.learning_rates(self.iteration)
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self.print_to_log_file("learning rates:", {name: float(f"{rate:.3g}") for name, rate in rates.items()})
        self.curves.log("lrs", next(iter(rates.values())), self.current_epoch)
        for name, rate in rates.items():
            self.curves.log(f"lr/{name}", rate, self.current_epoch)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One iteration: forward pass of all students, the terms, one backward pass, each student's step.

        Raises:
            CollabError: If the batch does not fit into the memory; the message says which would.
        """
        try:
            return self._train_step(batch)
        except torch.OutOfMemoryError as error:
            message = str(error)
        raise out_of_memory(self, batch, message)

    def _train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.optimizers.set_learning_rates(self.iteration)
        self.optimizers.zero_grad()
        statistics = RunningStatistics(self.group)
        batch = {**batch, **{key: batch[key].to(self.device, non_blocking=True) for key in IMAGES if key in batch}}
        with self._autocast():
            terms = self.batch_terms(batch)
        self.optimizers.backward(sum((t.weight * t.value for t in terms), start=torch.zeros((), device=self.device)))
        norms, scale = self.optimizers.clip(), self.optimizers.scale(self.device)
        read = read_step(
            batch, terms, norms, statistics, self.must_be_finite(), scale
        )  # the only place where a step waits for the device
        if read.usable:
            if self._step(read, cases_of(batch)):
                self.after_step()
        else:
            statistics.restore()
            self.optimizers.discard(read.scale)
            self.guard.bad(self.iteration, read.culprits or ["another process"], cases_of(batch))
        self.iteration += 1
        weights = {f"{t.student}/{t.name}": t.weight for t in terms}
        weighted = {name: weight * value for (name, weight), value in zip(weights.items(), read.terms, strict=True)}
        return {"loss": sum(weighted.values()), "terms": weighted, "weights": weights}

    def must_be_finite(self) -> dict[str, Tensor]:
        """Other tensors that must be finite for a step to be taken, by name: those that `after_step` uses."""
        return {}

    def _step(self, read: Reading, cases: list[str]) -> bool:
        """True if every student was stepped.

        A non-finite gradient is an error, except while a gradient scaler searches for its scale.
        """
        left = self.optimizers.step(read.norms)
        # With a scale below 1 the search is over: the gradient would not be finite without a scaler either.
        scaling = self.grad_scaler is not None and read.scale * self.grad_scaler.get_backoff_factor() >= 1
        if left and not scaling:
            self.guard.bad(self.iteration, [f"the gradient of {name}" for name in left], cases)
        else:
            self.guard.good()
        return not left

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the means of the epoch over the iterations of all ranks."""
        self.curves.log_training(
            [output for rank in gather_objects(train_outputs) for output in rank], self.current_epoch
        )

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """On one batch: supervised loss of the students that learn, overlap of all with the truth and each other."""
        image, target, truth = self._to_device(batch)
        with self._autocast():
            outputs: dict[str, StudentOutput] = self.deployed(image)
            learners = [outputs[s.name] for s in self.settings.students if not s.frozen]
            losses = [float(self.supervised(output, target)) for output in learners]
        return {"loss": float(np.mean(losses)), **self.validation_counts(image, outputs, truth)}

    def validation_counts(self, image: Tensor, outputs: dict[str, StudentOutput], truth: Truth) -> dict[str, Any]:
        """Values for the validation curves of the epoch; a method may add its own."""
        true = true_masks(truth, self.label_manager.num_segmentation_heads)
        masks = {name: predicted_masks(output.logits, truth) for name, output in outputs.items()}
        counts = {name: overlap_counts(mask, true) for name, mask in masks.items()}
        return {"counts": counts, "agreement": agreement_counts(masks) if len(masks) > 1 else None}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Pseudo Dice per student, and their mean, which selects checkpoint_best."""
        outputs = [output for rank in gather_objects(val_outputs) for output in rank]
        # A frozen teacher does not learn, so it does not count in the choice of the best checkpoint.
        learners = [s.name for s in self.settings.students if not s.frozen]
        self.curves.log_validation(outputs, learners, self.current_epoch)

    def on_epoch_end(self) -> None:
        """Print, save and draw the results of the epoch."""
        epoch = self.current_epoch
        self.on_epoch_logged()
        best = self.logger.get_value("ema_fg_dice", step=-1)
        improved = self._best_ema is None or best > self._best_ema
        if improved:
            self._best_ema = best
            self.print_to_log_file(f"New best EMA pseudo Dice (mean of the students): {best:.4f}")
            self.save_checkpoint(str(Path(self.output_folder, "checkpoint_best.pth")))
        if (epoch + 1) % self.save_every == 0 and epoch != self.num_epochs - 1:
            self.save_checkpoint(str(Path(self.output_folder, "checkpoint_latest.pth")))
        if self.rank == 0:
            self.curves.write(Path(self.output_folder), self.print_to_log_file)
        self.current_epoch += 1

    def on_epoch_logged(self) -> None:
        """Print the epoch's numbers."""
        self.logger.log("epoch_end_timestamps", time.time(), self.current_epoch)
        for line in self.curves.summary():
            self.print_to_log_file(line)

    # ---------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Write everything that a resumed run needs, atomically. The first process writes for all ranks."""
        states = gather_objects(checkpoints.random_states())
        if self.rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        checkpointing.save(self, Path(filename), states)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Continue exactly where a checkpoint was written.

        Raises:
            CollabError: If the file is damaged, or was written by another trainer or with other settings.
        """
        self._resume_states = checkpointing.restore(self, Path(filename_or_checkpoint))

    # ---------------------------------------------------------------- after training

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Publish every student and predict the validation cases with each, in its own results folder."""
        self.results.hold()
        try:
            self._validate_students(save_probabilities)
        finally:
            self.results.release()

    def _validate_students(self, save_probabilities: bool) -> None:
        fold = Path(self.output_folder)
        if self.rank == 0:
            self._publish(fold)
        if self.is_ddp:
            dist.barrier()
        regions = self.plans_manager.plans[planning.KEY]["regions"]
        before = self.network, self.output_folder, self.output_folder_base
        for name, network, target in networks_to_validate(fold, self.deployed, self.settings, regions=regions):
            target.mkdir(parents=True, exist_ok=True)
            self.print_to_log_file(f"validation of {name}")
            # nnU-Net validates what `self.network` is and writes where `self.output_folder` points.
            self.network, self.output_folder, self.output_folder_base = network, str(target), str(target.parent)
            try:
                super().perform_actual_validation(save_probabilities)
            finally:
                self.network, self.output_folder, self.output_folder_base = before

    def _publish(self, fold: Path) -> None:
        if (fold / CHECKPOINTS[0]).is_file() and not self.disable_checkpointing:
            for folder in publish_fold(fold):
                self.print_to_log_file(f"published: {folder}")
        else:
            self.print_to_log_file(f"No student published: there is no {CHECKPOINTS[0]}")
