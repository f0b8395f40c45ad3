"""The objective over many processes: DistributedDataParallel, FSDP2, or neither; and the whole student out of it."""

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
    """`objective` as its processes run it. FSDP2 replaces the student's parameters: make the optimiser afterwards."""
    if sharding == "fsdp":
        if processes.count == 1:
            raise ValueError("sharding=fsdp divides a model among processes, and there is one; start with torchrun")
        mesh = init_device_mesh(objective.student.device.type, (processes.count,))
        for block in objective.student.image_encoder.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(objective, mesh=mesh)
    return objective if processes.count == 1 else DistributedDataParallel(objective)


@contextmanager
def gradients_join(objective: Wrapped, *, last: bool) -> Iterator[None]:
    """While the context lasts, whether a backward pass joins the gradients of all processes: the `last` of a step."""
    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(last)
        yield
    elif isinstance(objective, DistributedDataParallel) and not last:
        with objective.no_sync():
            yield
    else:
        yield


def whole(student: Sam, average: dict[str, Tensor]) -> Sam:
    """`student` as one process can run and save it: unsharded, with the moving `average` of its weights if there is
    one. The student itself where that changes nothing."""
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
