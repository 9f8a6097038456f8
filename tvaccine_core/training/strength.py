"""How strong a perturbation is for this model: rho as a share of the attention outputs that it shifts.

The same rho is a strong shift for a small model and a weak one for a large model. The joint norm of all attention
outputs of an alignment batch, before any training, is what rho can be compared with between models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tvaccine_core.data.prompts import Encoded
from tvaccine_core.models import hooks
from tvaccine_core.models.anatomy import find_blocks
from tvaccine_core.passes.perturbation import joint_norm
from tvaccine_core.training.collate import collate


def relative_strength(model: nn.Module, examples: Sequence[Encoded], pad_id: int, rho: float) -> float:
    """`rho` over the joint L2 norm of all attention outputs of `examples` as one batch, padding included.

    Cost: one forward pass, in the model's present mode; keeps nothing.

    Raises:
        ModelError: the attention modules cannot be found by structure.
    """
    device = next(model.parameters()).device
    batch = collate(examples, pad_id)
    attentions = {index: block.attention for index, block in enumerate(find_blocks(model))}
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), hooks.norms_of_outputs(attentions) as norms:
            model(input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False)
    finally:
        model.train(training)
    return rho / float(joint_norm(norms, lambda squares: squares)[0])
