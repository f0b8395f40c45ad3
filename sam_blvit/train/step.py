"""One optimiser step over the batches of all processes. Steps whose gradient is not finite are skipped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor

from sam_blvit.config import FinetuneConfig, ModelConfig
from sam_blvit.data.samples import Damaged, Sample
from sam_blvit.model.sam import Sam
from sam_blvit.system.distributed import Processes
from sam_blvit.train.batches import Batch
from sam_blvit.train.loss.objective import Objective, Outcome, StepPlan, cells_along
from sam_blvit.train.optim import MovingAverage
from sam_blvit.train.parallel import Wrapped, gradients_join


@dataclass(frozen=True)
class StepResult:
    """Result of a step, equal in all processes unless noted."""

    gradient_norm: float
    """Before clipping. If it is not finite, the step was skipped."""
    parts: dict[str, float]
    """The loss and its terms by name. Empty if not requested."""
    health: dict[str, float]
    """Router statistics of the first process."""


@dataclass(frozen=True)
class Counts:
    """Contents of the batches of a step, over all processes."""

    masks: float
    cells: float
    damaged: float
    asked_to_stop: bool
    """Whether any process received a signal to stop."""
    encodings: int = 0
    """Largest number of padded image sizes in a batch of any process. Only counted for FSDP2."""


@dataclass
class Stepper:
    """Everything needed to make a step."""

    objective: Wrapped
    optimizer: torch.optim.Optimizer
    config: FinetuneConfig
    processes: Processes
    device: torch.device
    average: MovingAverage | None = None
    parameters: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [value for group in self.optimizer.param_groups for value in group["params"]]

    def count(self, batches: Sequence[Batch], *, stop: bool = False) -> Counts:
        """Count the contents of this step over all processes. `stop`: whether this process was asked to stop."""
        samples = [item for batch in batches for item in batch if isinstance(item, Sample)]
        cell = self.student.config.cell
        here = [
            sum(len(sample.masks) for sample in samples),
            sum(cells_along(s.image.shape[-2], cell) * cells_along(s.image.shape[-1], cell) for s in samples),
            sum(isinstance(item, Damaged) for batch in batches for item in batch),
            stop,
        ]
        total = self.processes.total(
            torch.tensor(here, dtype=torch.float64)
        ).tolist()  # on the CPU, so that it does not wait for a GPU
        return Counts(
            masks=total[0],
            cells=max(1.0, total[1]),
            damaged=total[2],
            asked_to_stop=total[3] > 0,
            encodings=max(self.processes.gathered(self._shapes(batches)))
            if self.config.machine.sharding == "fsdp"
            else 0,
        )

    def _shapes(self, batches: Sequence[Batch]) -> int:
        """Return the largest number of padded sizes in a batch."""
        padded = self.student.image_encoder.padded_size
        shapes = [{padded(*s.image.shape[-2:]) for s in batch if isinstance(s, Sample)} for batch in batches]
        return max(len(of_batch) for of_batch in shapes)

    def plan(self, counts: Counts, *, step: int, with_health: bool = False) -> StepPlan:
        """Plan `step`, identically in all processes."""
        return StepPlan(
            keep_ratio=keep_ratio_of(step, self.config, self.student.config),
            masks=counts.masks,
            cells=counts.cells,
            processes=self.processes.count,
            encodings=counts.encodings,
            with_masks=step >= self.config.losses.kd_only_steps,
            with_health=with_health,
        )

    def step(self, batches: Sequence[Batch], plan: StepPlan, *, with_parts: bool = True) -> StepResult:
        """Update the weights from `batches`. If the gradient is not finite, nothing changes."""
        outcomes = [
            self._backward(batch, plan, last=number == len(batches) - 1) for number, batch in enumerate(batches)
        ]
        if not plan.with_masks:
            for parameter in self.student.mask_decoder.parameters():
                parameter.grad = None  # unused: no weight decay and no update of moments
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if norm.isfinite():
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.student)
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(
            gradient_norm=norm.item(),
            parts=self._joined(outcomes) if with_parts else {},
            health=next((outcome.health for outcome in outcomes if outcome.health), {}),
        )

    def _backward(self, batch: Batch, plan: StepPlan, *, last: bool) -> Outcome:
        with gradients_join(self.objective, last=last):
            outcome: Outcome = self.objective([item for item in batch if isinstance(item, Sample)], plan)  # type: ignore[operator]
            outcome.loss.backward()
        return outcome

    def _joined(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """Sum the terms of the loss over batches and processes. A term that a process lacks counts as 0."""
        sums: dict[str, float] = defaultdict(float)
        for outcome in outcomes:
            for name, value in outcome.parts.items():
                sums[name] += value.item()
        joined: dict[str, float] = defaultdict(float)
        for parts in self.processes.gathered(dict(sums)):
            for name, number in parts.items():
                joined[name] += number
        return dict(joined)

    @property
    def student(self) -> Sam:
        """The student model."""
        return cast(Objective, getattr(self.objective, "module", self.objective)).student


def keep_ratio_of(step: int, config: FinetuneConfig, model: ModelConfig) -> float:
    """Draw the keep ratio of `step` from those of the config, seeded by (seed, step): the same in every process."""
    if not model.routed:
        return 1.0
    return float(np.random.default_rng([config.data.seed, step]).choice(config.student.keep_ratios))
