"""The harmful fine-tuning attack (Qi et al., arXiv:2310.03693): a user uploads data of which a share is harmful.

An attack is a mixture and `fit` with plain fine-tuning. Its data, order and new adapter are functions of the attack's
own seed, so that every aligned model faces the same attack.
"""

from __future__ import annotations

from tvaccine_core.config import AttackConfig
from tvaccine_core.data.batches import derive_seed
from tvaccine_core.states.model_states import ModelStates


def prepare_attack(states: ModelStates, attack: AttackConfig, *, aligned: str, attacked: str) -> str:
    """Set up what the attack trains, define the state `attacked`, and return the name of the trained adapter.

    `new`: a fresh adapter on the frozen aligned one (the published protocol). `single`: a copy of the aligned adapter
    goes on training; its own rank and scaling are kept, of `attack.adapter` only the dropout is used.
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
