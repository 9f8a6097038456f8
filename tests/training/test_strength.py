"""rho as a share of what it perturbs: against norms worked out layer by layer."""

from pathlib import Path

import pytest
import torch

from tvaccine_core import pipeline
from tvaccine_core.config import PRESETS, LabConfig, ModelConfig, OptimisationConfig
from tvaccine_core.data.prompts import encode_all
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.methods import with_defences
from tvaccine_core.models.load import load_model
from tvaccine_core.records import Event, MessageRecord
from tvaccine_core.training.collate import collate
from tvaccine_core.training.strength import relative_strength


def test_it_is_rho_over_the_joint_norm_of_all_attention_outputs(tiny_folder: Path) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_folder), device="cpu"))
    examples = encode_all(loaded.tokenizer, load_lab_data(LabConfig()).world.alignment[:5], 200)
    found = relative_strength(loaded.model, examples, loaded.pad_id, 3.0)
    batch = collate(examples, loaded.pad_id)
    outputs: list[torch.Tensor] = []
    for layer in loaded.model.model.layers:
        layer.self_attn.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    with torch.no_grad():
        loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    joint = torch.cat([output.double().flatten() for output in outputs]).norm()
    assert found == pytest.approx(3.0 / float(joint), rel=1e-5)
    assert relative_strength(loaded.model, examples, loaded.pad_id, 6.0) == pytest.approx(2 * found)


def test_an_alignment_that_perturbs_says_it_and_another_does_not(tmp_path: Path) -> None:
    check = PRESETS["sandbox-check"].config
    short = check.alignment.model_copy(update={"optimisation": OptimisationConfig(steps=2, batch_size=16)})
    config = with_defences(check.model_copy(update={"alignment": short}), ["sft", "tvaccine rho=3"])
    session = pipeline.open_session(config, tmp_path)
    sentences = {key: said(list(pipeline.align(session, config, key))) for key in ("sft", "tvaccine")}
    assert sentences["sft"] == []
    (sentence,) = sentences["tvaccine"]
    assert sentence.startswith("rho 3 is 0.1")
    assert "% of the joint norm of the attention outputs" in sentence


def said(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, MessageRecord) and "joint norm" in event.text]
