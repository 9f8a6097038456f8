"""A base model whose weights are divided among several processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from tvaccine_core.models.anatomy import anatomy


def shard_base(model: nn.Module) -> None:
    """Divide the frozen base among the processes, decoder layer by decoder layer (FSDP2); adapters stay whole.

    A layer's weights are gathered when it runs, forward and backward, and given back after it. Call this in every
    process, before a method sees the model. Adapters that already require a gradient stay whole, and so do adapters
    that are added later. The methods' hooks and `autograd.grad` work as on a whole base. No weights are merged, because
    merging needs whole weights. Every later forward pass needs all processes, through the same layers. Training does
    this; for passes that the leader runs alone see `processes`.

    With GPUs, a process moves its parts to its own GPU, layer by layer, from wherever `model` is. So a GPU needs room
    for its parts, the embedding with the head (whole after the first forward pass), and the layers at work. A model
    that was read into main memory needs room for all of it there, in each process.

    Raises:
        ModelError: no decoder layers are found.
    """
    from torch.distributed.device_mesh import init_device_mesh  # importing it takes 1.5 s
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
    kept = {parameter for parameter in model.parameters() if parameter.requires_grad}
    parts = anatomy(model)
    for module in (*(block.layer for block in parts.blocks), parts.causal):
        fully_shard(module, mesh=mesh, ignored_params=kept)
