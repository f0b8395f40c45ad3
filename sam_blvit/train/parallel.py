"""Wrap the objective in DistributedDataParallel or FSDP2, and gather the whole student from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.system.distributed import Processes
from sam_blvit.train.loss.objective import Objective

Wrapped = Objective | DistributedDataParallel | FSDPModule


def wrapped(objective: Objective, sharding: str, processes: Processes) -> Wrapped:
    """Wrap `objective` for several processes. Build the optimiser afterwards: FSDP2 replaces the parameters."""
    if sharding == "fsdp":
        if processes.count == 1:
            raise ValueError("sharding=fsdp needs several processes, but there is one; start with torchrun")
        mesh = init_device_mesh(objective.student.device.type, (processes.count,))
        for block in objective.student.image_encoder.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(objective, mesh=mesh)
    return objective if processes.count == 1 else DistributedDataParallel(objective)


@contextmanager
def gradients_join(objective: Wrapped, *, last: bool) -> Iterator[None]:
    """Context in which gradients are reduced over processes only in the `last` backward pass of a step."""
    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(last)
        yield
    elif isinstance(objective, DistributedDataParallel) and not last:
        with objective.no_sync():
            yield
    else:
        yield


def whole(student: Sam, average: dict[str, Tensor]) -> Sam:
    """Return an unsharded copy of `student` with the moving `average` of its weights, if not empty.

    Returns the student itself if it is not sharded and there is no average.
    """
    sharded = any(hasattr(parameter, "full_tensor") for parameter in student.parameters())
    if not sharded and not average:
        return student
    state = get_model_state_dict(student, options=StateDictOptions(full_state_dict=True))
    full = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in average.items()}
    with torch.device("meta"):
        copy = build_sam(student.config)
    copy.to_empty(device=student.device)
    copy.load_state_dict({**state, **full}, strict=True)
    for name, buffer in student.named_buffers():  # not all of them are in the state dict
        copy.get_buffer(name).copy_(buffer)
    return copy.eval()
