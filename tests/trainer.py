"""tools/finetune.py with the registry's two small models smaller still, and a diary of what each step saw.

Tests run it in processes of its own (tests/processes.py), so that it can be killed, signalled and joined with others.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from conftest import TINY
from sam_blvit.cli import run
from sam_blvit.commands.finetune import finetune
from sam_blvit.config import MODELS, FinetuneConfig, override
from sam_blvit.data.samples import Sample
from sam_blvit.model.sam import Sam
from sam_blvit.system.distributed import Processes
from sam_blvit.train import setup
from sam_blvit.train.batches import Batch
from sam_blvit.train.loss.objective import StepPlan
from sam_blvit.train.optim import optimizer_for
from sam_blvit.train.step import Counts, Stepper

LINEAR = "LINEAR_OPTIMIZER"
"""Switch: SGD, whose steps are as close to each other as the gradients are, and a record of those. AdamW turns a
gradient near zero of either sign into a whole step."""
MISCOUNTED = "MISCOUNTED"
"""Switch: each process divides its losses by what it counted itself."""


class Watched(Stepper):
    """A stepper that writes down which samples each step saw, once it has seen them."""

    number = -1

    def plan(self, counts: Counts, *, step: int, with_health: bool = False) -> StepPlan:
        self.number = step
        return super().plan(counts, step=step, with_health=with_health)

    def step(self, batches: Sequence[Batch], plan: StepPlan, *, with_parts: bool = True) -> Any:
        result = super().step(batches, plan, with_parts=with_parts)
        seen = [[item.epoch, item.image_id] for batch in batches for item in batch if isinstance(item, Sample)]
        with (Path(os.environ["DIARY"]) / f"{self.processes.rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.number, "seen": seen}) + "\n")
        return result


def linear_optimizer(sam: Sam, config: FinetuneConfig) -> torch.optim.Optimizer:
    """SGD at the rates that AdamW would have, which writes the gradients of each step to the diary."""
    groups = optimizer_for(sam, config).param_groups
    names = {value: name for name, value in sam.named_parameters()}
    kept = ("params", "lr", "peak_lr")
    optimizer = torch.optim.SGD([{name: group[name] for name in kept} for group in groups], momentum=0.9)
    steps = itertools.count()

    def write(*_: object) -> None:
        values = {names[value]: value.grad for group in groups for value in group["params"] if value.grad is not None}
        whole = {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in values.items()}
        path = Path(os.environ["DIARY"]) / f"gradients_{next(steps):04d}.safetensors"
        if os.environ.get("RANK", "0") == "0":
            save_file({name: grad.contiguous() for name, grad in whole.items()}, path)

    optimizer.register_step_pre_hook(write)
    return optimizer


def train(flags: list[str], environment: dict[str, str], said: Path) -> None:
    """Run `tools/finetune.py` with `flags`; what it prints goes to the file `said`."""
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of readers of data, as where nobody forked this process
    MODELS["blvit_tiny"] = override(TINY, name="blvit_tiny")
    MODELS["vit_tiny"] = override(TINY, name="vit_tiny", routed_from=None, routers_after=(), little_layers=())
    setup.Stepper = Watched  # type: ignore[misc]
    if os.environ.get(LINEAR):
        setup.optimizer_for = linear_optimizer  # type: ignore[assignment]
    if os.environ.get(MISCOUNTED):
        Processes.total = lambda _, values: values.clone()  # type: ignore[method-assign]
    run(finetune, flags)
