"""The loss of one process's batch: encode, compare with the teacher, decode prompts, compare with the masks.

All of this is one `forward`, so that DistributedDataParallel and FSDP2 see one call per batch. Losses are sums over
this batch, divided by counts over the whole step (all processes and all accumulated batches). The gradient therefore
does not depend on how the images of a step are divided.

Shapes:
    B  images of a batch    G  tokens along a side    C  channels
    A cell is one position of the embedding: a token, or a part of one if the encoder upsamples its embedding.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sam_blvit.config import PATCH_SIZE, FinetuneConfig
from sam_blvit.data.samples import Sample
from sam_blvit.model.encoder import Encoding
from sam_blvit.model.sam import Sam
from sam_blvit.train.loss.rounds import mask_losses
from sam_blvit.train.loss.router_health import router_health
from sam_blvit.train.loss.terms import distillation_loss, listwise_loss
from sam_blvit.train.teacher.targets import Target, Teacher

DROP_PATH = 0xD709
"""Part of the seed that separates the draws of drop path from those of prompts."""


@dataclass(frozen=True)
class StepPlan:
    """What all batches of a step share, in all processes."""

    keep_ratio: float
    masks: float
    """Number of masks in the step."""
    cells: float
    """Number of cells in the step's embeddings that lie on a photograph."""
    processes: int
    encodings: int = 0
    """With FSDP2: encoder runs per batch, equal in all processes, because each layer needs all processes at once."""
    with_masks: bool = True
    """False: only distillation."""
    with_health: bool = False
    """Whether to compute the routers' health as well."""


@dataclass(frozen=True)
class Outcome:
    """The loss of a batch, and values to log."""

    loss: Tensor
    """Scalar to minimise. It is multiplied by the number of processes, because gradients are averaged over them."""
    parts: dict[str, Tensor]
    """Scalars by name, without gradient. Their sum over batches and processes is the mean of the step."""
    health: dict[str, float]


class Objective(nn.Module):
    """A student and its loss. The only parameters are the student's."""

    def __init__(self, student: Sam, teacher: Teacher | None, config: FinetuneConfig) -> None:
        super().__init__()
        self.student = student
        self.config = config
        self._teacher = [teacher]  # in a list, so that it is not registered as a submodule

    def forward(self, samples: list[Sample], plan: StepPlan) -> Outcome:
        """Compute the loss of `samples`. Without samples it is zero, with a gradient for every parameter."""
        parts: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.student.device))
        health: dict[str, float] = {}
        loss = self._nothing()
        self.student.image_encoder.keep_ratio = plan.keep_ratio
        encodings = 0
        if samples:
            of_samples, encodings = self._loss(samples, plan, parts, health)
            loss = loss + plan.processes * of_samples
        for _ in range(plan.encodings - encodings):
            loss = loss + self._idle_encoding()
        return Outcome(loss=loss, parts={name: value.detach() for name, value in parts.items()}, health=health)

    def _nothing(self) -> Tensor:
        """Return zero, computed from every trained parameter.

        At some keep ratios parameters are unused, but the processes of a step wait for the gradients of all.
        """
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        local = [p.to_local() if hasattr(p, "to_local") else p for p in trained]  # FSDP2 shards some
        return 0.0 * torch.stack([value.sum().float() for value in local]).sum()

    def _idle_encoding(self) -> Tensor:
        """Run the encoder on a smallest image while other processes run it on theirs, and return zero."""
        size = self.student.image_encoder.padded_size(1, 1)
        with self._autocast():
            ((_, encoding),) = self.student.encode_by_shape([torch.zeros(3, *size, device=self.student.device)])
        return 0.0 * encoding.embedding.sum()

    def _loss(
        self, samples: list[Sample], plan: StepPlan, parts: dict[str, Tensor], health: dict[str, float]
    ) -> tuple[Tensor, int]:
        """Return the loss of `samples`, and how often the encoder ran for it."""
        images = [sample.image.to(self.student.device).float() for sample in samples]
        teacher = self._teacher[0]
        target = None if teacher is None else teacher.targets(images, samples)
        with self._autocast():
            groups = self.student.encode_by_shape(
                images,
                branch_scale=self._branch_scale(samples),
                features_of=() if target is None else tuple(target.features),
                with_benefits=self.config.losses.listwise_weight > 0,
            )
        losses = []
        for places, encoding in groups:
            shown = [images[place] for place in places]
            config = self.student.config
            valid = valid_cells(shown, config.embedding_grid, config.cell)
            valid_tokens = valid_cells(shown, config.grid, PATCH_SIZE)
            if target is not None:
                losses.append(self._distillation(encoding, target.of(places), valid, plan, parts))
            losses += self._listwise(encoding, valid_tokens, plan, parts)
            if plan.with_masks:
                losses.append(self._masks([samples[place] for place in places], encoding.embedding, plan, parts))
            if plan.with_health and not health:
                health.update(router_health(encoding, valid_tokens))
        loss = torch.stack(losses).sum()
        parts["loss"] += loss.detach()
        return loss, len(groups)

    def _masks(self, samples: list[Sample], embeddings: Tensor, plan: StepPlan, parts: dict[str, Tensor]) -> Tensor:
        with self._autocast():
            loss = mask_losses(
                self.student,
                samples,
                embeddings,
                prompts=self.config.prompts.prompts,
                correction_rounds=self.config.prompts.correction_rounds,
                seed=self.config.data.seed,
                point_sample=self.config.prompts.point_sample,
                checkpoint_rounds=self.config.machine.checkpoint_layers,
            )
        count = max(1.0, plan.masks)
        for name in ("focal", "dice", "iou", "answer_iou"):
            parts[name] += getattr(loss, name).detach().sum() / count
        return loss.total.sum() / count

    def _distillation(
        self, encoding: Encoding, target: Target, valid: Tensor, plan: StepPlan, parts: dict[str, Tensor]
    ) -> Tensor:
        config = self.config
        final = distillation_loss(encoding.embedding, target.embedding, valid)
        parts["distillation"] += final.cosine.detach() / plan.cells
        if config.losses.distillation_mse:
            parts["distillation_mse"] += final.mse.detach() / plan.cells
        share = final.tokens / plan.cells
        for name in ("low_cosine", "norm_ratio"):
            parts[name] += getattr(final, name) * share
        losses = config.losses
        loss = losses.distillation_weight * final.cosine + losses.distillation_mse * final.mse
        for layer, feature in target.features.items():
            ours = encoding.features[layer].permute(0, 3, 1, 2)  # (B, C, Gh, Gw), may be smaller than the square
            rows, cols = ours.shape[-2:]
            theirs = feature.permute(0, 3, 1, 2)[..., :rows, :cols]
            tokens = valid[:, :: self.student.config.enlarge, :: self.student.config.enlarge]
            between = distillation_loss(ours, theirs, tokens[:, :rows, :cols])
            parts[f"distillation_{layer}"] += between.cosine.detach() / plan.cells
            loss = loss + config.losses.distillation_layers * between.cosine / len(target.features)
        return loss / plan.cells

    def _listwise(self, encoding: Encoding, valid: Tensor, plan: StepPlan, parts: dict[str, Tensor]) -> list[Tensor]:
        """Return one loss per router that ran, if listwise_weight is not 0."""
        losses = []
        for layer, benefits in encoding.benefits.items():
            apart = listwise_loss(encoding.logits[layer], benefits, valid, encoding.layout) / plan.cells
            parts[f"listwise_{layer}"] += apart.detach()
            losses.append(self.config.losses.listwise_weight * apart)
        return losses

    def _branch_scale(self, samples: list[Sample]) -> Tensor | None:
        """Drop path: draw factors (B, layers, 2) on the updates of each image, 0 or 1 / (probability of keeping)."""
        config, layers = self.config, self.student.config.layers
        if not config.optimizer.drop_path:
            return None
        stays = 1 - np.linspace(0, config.optimizer.drop_path, layers)[:, None]
        drawn = [
            np.random.default_rng([config.data.seed, sample.epoch, sample.image_id, DROP_PATH]).random((layers, 2))
            < stays
            for sample in samples
        ]
        return torch.tensor(np.stack(drawn) / stays, dtype=torch.float32, device=self.student.device)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.machine.precision == "bf16":
            return torch.autocast(self.student.device.type, dtype=torch.bfloat16)
        return nullcontext()


def valid_cells(images: list[Tensor], grid: int, cell: int) -> Tensor:
    """Mark the cells that lie on a photograph, by more than half in each direction.

    Args:
        images: B photographs, (3, h, w) each.
        grid: Cells along a side of the square input.
        cell: Side of a cell, pixels.

    Returns:
        (B, grid, grid), 1 on the photograph, else 0.
    """
    valid = images[0].new_zeros(len(images), grid, grid)
    for i, image in enumerate(images):
        rows, cols = cells_along(image.shape[-2], cell), cells_along(image.shape[-1], cell)
        valid[i, :rows, :cols] = 1
    return valid


def cells_along(pixels: int, cell: int) -> int:
    """Return the number of cells of `cell` pixels of which more than half lies on a side of `pixels`; at least one."""
    return max(1, (pixels + cell // 2 - 1) // cell)
