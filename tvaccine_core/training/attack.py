"""The harmful fine-tuning attack (Qi et al., arXiv:2310.03693): a user uploads data of which a share is harmful.

An attack is a mixture and `fit` with plain fine-tuning. Its data, their order and the new adapter depend on the seed
of the attack alone, so that every aligned model faces the same attack.
"""

from __future__ import annotations

from tvaccine_core.config import AttackConfig
from tvaccine_core.data.batches import derive_seed
from tvaccine_core.states.model_states import ModelStates


def prepare_attack(states: ModelStates, attack: AttackConfig, *, aligned: str, attacked: str) -> str:
    """Set up the attack's adapter, define the state `attacked`, and return the adapter's name.

    `new`: a fresh adapter on the frozen aligned adapter (the published protocol). `single`: a copy of the aligned
    adapter trains on, with the same rank and scaling; only the dropout of `attack.adapter` is used.
    """
    trained = f"{attacked}/trained"
    states.drop(attacked)
    states.drop(trained)
    if attack.adapter_mode == "single":
        states.copy(aligned, trained, dropout=attack.adapter.dropout)
        states.define(attacked, [trained])
        states.train(trained)
    else:
        states.add(trained, attack.adapter, derive_seed(attack.seed, "adapter"))
        states.define(attacked, [aligned, trained])
        states.train(trained, on_top_of=aligned)
    return trained
