"""The plan against the truth: real models, real steps, every storage counted; and the plan's own arithmetic."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from tvaccine_core.bench.memory import LiveTensors
from tvaccine_core.config import (
    AdapterConfig,
    AlignmentConfig,
    AlignmentMethod,
    Defence,
    EvaluationConfig,
    LabConfig,
    ModelConfig,
    OptimisationConfig,
    SFTConfig,
    TVaccineConfig,
    VaccineConfig,
)
from tvaccine_core.data.prompts import Encoded
from tvaccine_core.errors import ConfigError, ModelError
from tvaccine_core.methods import load_method
from tvaccine_core.models.load import load_model
from tvaccine_core.plan.dry_run import dry_run
from tvaccine_core.plan.fake_model import ALIGNED, describe_model, fake_states, storages, word_tokenizer
from tvaccine_core.plan.planner import plan_run, workload_of
from tvaccine_core.plan.records import MemoryPlan
from tvaccine_core.plan.shapes import BUILT_IN, built_in_shape, find_gpu, read_shape
from tvaccine_core.plan.tracker import Tracker
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.training.fit import fit

SIZES = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
METHODS: dict[str, AlignmentMethod] = {
    "sft": SFTConfig(),
    "vaccine": VaccineConfig(),
    "tvaccine": TVaccineConfig(num_layers=2, probe_batch_size=5),
}


@dataclass(frozen=True)
class Case:
    """A model and what it is put through."""

    family: str
    layers: int
    batch: int
    length: int
    method: str
    storage: str = "float32"
    """float32, bfloat16, int8 or nf4."""
    memory: Any = "speed"

    def __str__(self) -> str:
        return "-".join(map(str, vars(self).values()))


CASES = (
    Case("llama", 4, 4, 64, "sft"),
    Case("llama", 6, 2, 128, "tvaccine", "bfloat16", "balanced"),
    Case("qwen2", 3, 8, 32, "vaccine", "float32", "lowest"),
    Case("gemma2", 4, 3, 48, "tvaccine", "bfloat16"),
    Case("opt", 3, 4, 64, "vaccine"),
    Case("gpt_neox", 5, 2, 96, "sft", "float32", "balanced"),
    Case("phi3", 4, 6, 40, "tvaccine", "float32", "lowest"),
    Case("mistral", 2, 1, 200, "sft", "bfloat16"),
    Case("llama", 3, 5, 50, "tvaccine", "nf4"),
    Case("qwen3", 3, 4, 64, "vaccine", "nf4", "lowest"),
    Case("gemma3_text", 6, 2, 64, "sft", "int8"),
)


def tiny_shape(family: str, layers: int, **more: Any) -> PretrainedConfig:
    special = {**FAMILIES[family], **({"ffn_dim": 256, "word_embed_proj_dim": 64} if family == "opt" else {})}
    return CONFIG_MAPPING[family](**{**SIZES, "num_hidden_layers": layers, **special, **more})


def save_model(folder: Path, shape: PretrainedConfig) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


def lab_config(case: Case, folder: Path) -> LabConfig:
    quantised = case.storage in ("nf4", "int8")
    model = {
        "name": str(folder),
        "quantization": case.storage if quantised else "none",
        "dtype": "float32" if quantised else case.storage,
        "device": "cpu",
        "activation_memory": case.memory,
    }
    return LabConfig(
        model=ModelConfig.model_validate(model),
        defences=(Defence(alignment=METHODS[case.method]),),
        alignment=AlignmentConfig(
            optimisation=OptimisationConfig(steps=3, batch_size=case.batch, max_length=case.length),
        ),
        evaluation=EvaluationConfig(batch_size=3, max_new_tokens=5),
    )


def bytes_of(tensors: Any) -> int:
    """Of unique storages."""
    return sum({id(storage): storage.nbytes() for storage in map(Tensor.untyped_storage, list(tensors))}.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_is_what_real_steps_hold(case: Case, tmp_path: Path) -> None:
    """Three steps of `fit` on the loaded model, counted by a tracker that knows nothing of plans."""
    save_model(tmp_path, tiny_shape(case.family, case.layers))
    config = lab_config(case, tmp_path)
    labelled = case.length // 2
    (plan,) = plan_run(config, device="cpu", labelled=labelled)
    step = plan.phase("step")
    assert step is not None
    assert sum(step.parts.values()) == step.peak_bytes

    states = ModelStates(load_model(config.model))
    states.add(ALIGNED, AdapterConfig(), 0)
    states.train(ALIGNED)
    held = bytes_of(storages(states.model))
    method = config.defences[0].alignment
    if isinstance(method, TVaccineConfig):
        method = method.model_copy(update={"layer_choice": "first"})
    masked = case.length - labelled
    rows = [Encoded(str(row), (row,) * case.length, (-100,) * masked + (row,) * labelled) for row in range(case.batch)]
    with LiveTensors() as live:
        for _ in fit(
            states.model,
            load_method(method),
            {"alignment": rows},
            config.alignment.optimisation,
            seed=0,
            pad_id=0,
            activation_memory=case.memory,
        ):
            pass
    assert step.peak_bytes == pytest.approx(held + live.peak_bytes, rel=0.02)
    weights = held - sum(parameter.nbytes for parameter in states.model.parameters() if parameter.requires_grad)
    assert step.parts["weights"] == pytest.approx(weights, rel=0.01)
    assert plan.num_parameters > 100_000


@pytest.mark.parametrize("case", [pytest.param(CASES[1], marks=pytest.mark.slow), CASES[8]], ids=str)
def test_every_phase_and_part_is_what_the_same_dry_run_finds_on_a_real_model(case: Case, tmp_path: Path) -> None:
    shape = tiny_shape(case.family, case.layers)
    save_model(tmp_path, shape)
    config = lab_config(case, tmp_path)
    method = config.defences[0].alignment
    states = ModelStates(load_model(config.model))
    states.add(ALIGNED, AdapterConfig(), 0)
    truth = dry_run(states, method, workload_of(config))
    fake = dry_run(fake_states(config.model, shape, "cpu", AdapterConfig()), method, workload_of(config))
    assert set(truth) == {"passes", "update", "score", "prompts", "tokens"}
    assert fake == truth
    assert truth["tokens"].parts["cache"] > 0
    # 3 prompts of 50 or 128 tokens and 4 new ones, 2 key-value heads of 32, keys and values, in each layer
    cached = 3 * (case.length + 4) * 2 * 32 * 2 * case.layers * (2 if case.storage == "bfloat16" else 4)
    assert truth["tokens"].parts["cache"] >= cached


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case("llama", 9, 2, 24, "tvaccine", "nf4"), marks=pytest.mark.slow),
        pytest.param(Case("gemma2", 9, 2, 24, "tvaccine", "bfloat16", "balanced"), marks=pytest.mark.slow),
        Case("qwen2", 12, 2, 24, "sft", "float32", "lowest"),
    ],
    ids=str,
)
def test_extrapolating_gives_what_running_through_every_layer_gives(case: Case, tmp_path: Path) -> None:
    tiny_shape(case.family, case.layers, vocab_size=160).save_pretrained(tmp_path)
    config = lab_config(case, tmp_path)
    config = config.model_copy(update={"defences": (Defence(alignment=_with_three_layers(METHODS[case.method])),)})
    (whole,), (quick,) = plan_run(config, device="cpu", whole=True), plan_run(config, device="cpu", whole=False)
    assert whole.exact
    assert not quick.exact
    for one, other in zip(whole.phases, quick.phases, strict=True):
        assert other.peak_bytes == pytest.approx(one.peak_bytes, rel=0.001), one.phase
        assert {part: other.parts[part] for part in ("weights", "adapters", "optimiser")} == {
            part: one.parts[part] for part in ("weights", "adapters", "optimiser")
        }


def _with_three_layers(method: AlignmentMethod) -> AlignmentMethod:
    return method.model_copy(update={"num_layers": 3}) if isinstance(method, TVaccineConfig) else method


def test_the_tracker_counts_storages_from_birth_to_death() -> None:
    x = torch.ones(1000)
    with Tracker(vocabulary=17) as tracker:
        tracker.own([x], "weights")
        y = x + 1  # 4000
        z = y * 2  # 4000
        view = z[:10]
        del y
        wide = torch.ones(3, 17)
        del z
    assert view.shape == (10,)
    peak = tracker.peak()
    assert peak.num_bytes == 3 * 4000
    assert peak.parts["weights"] == 4000
    assert peak.parts["workspace"] == 8000
    later = tracker.peak(tracker.now)
    assert later.parts["head"] == wide.nbytes == 204
    assert later.num_bytes == 8204  # x, and z by its view


def test_what_is_kept_long_is_an_activation_and_moments_count_from_the_start() -> None:
    weight = torch.nn.Parameter(torch.ones(100))
    with Tracker(vocabulary=17) as tracker:
        tracker.own([weight], "adapters")
        kept = weight.detach() * 2
        for _ in range(70):
            torch.ones(1)
        weight.grad = torch.ones(100)
        torch.optim.AdamW([weight], fused=True).step()
    assert tracker.peak().parts["activations"] == kept.nbytes
    assert tracker.peak().parts["gradients"] == 400
    assert tracker.peak(0, 2).parts["optimiser"] == 2 * 400 + 4


def test_seven_billion_parameters_are_described_without_memory_and_nf4_stores_them_in_half_a_byte() -> None:
    shape = built_in_shape("llama-2-7b")
    shape.num_hidden_layers = 2
    states = fake_states(ModelConfig(name="llama-2-7b", quantization="nf4"), shape, "cuda", AdapterConfig())
    linears = 2 * (4 * 4096**2 + 3 * 4096 * 11008)
    others = 2 * (2 * 32000 * 4096 + 5 * 4096)  # bytes in bfloat16
    adapters = sum(parameter.nbytes for parameter in states.model.parameters() if parameter.dtype == torch.float32)
    stored = bytes_of(storages(states.model)) - adapters
    assert stored == pytest.approx(others + linears * (0.5 + 1 / 64 + 4 / 64 / 256), rel=0.001)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_models_have_the_parameters_of_their_name(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(built_in_shape(name))
    billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    size = {"phi-3-mini": 3.8}.get(name) or float(name.rpartition("-")[2].removesuffix("b"))
    assert billions == pytest.approx(size, rel=0.32)


def test_cards_are_found_however_they_are_written() -> None:
    assert find_gpu("RTX 4090") == find_gpu("nvidia geforce rtx-4090") == find_gpu("4090") == ("RTX 4090", 24)
    with pytest.raises(ConfigError, match="abacus") as caught:
        find_gpu("abacus")
    assert "--memory-gib" in caught.value.remedy


def test_a_model_without_a_config_is_an_error_with_a_way_on(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_shape(ModelConfig(name=str(tmp_path)))
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json of .* is damaged"):
        read_shape(ModelConfig(name=str(tmp_path)))
    with pytest.raises(ModelError) as caught:
        read_shape(ModelConfig(name="meta-llama/Llama-2-7b-hf"))
    assert "llama-2-7b" in caught.value.remedy


def test_a_config_with_code_of_its_own_says_how_it_is_allowed(tmp_path: Path) -> None:
    settings = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
    (tmp_path / "mine.py").write_text("raise SystemExit('remote code ran')", encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelError, match="Python code of its own") as caught:
        read_shape(ModelConfig(name=str(tmp_path)))
    assert "--set model.trust_remote_code=true" in caught.value.remedy
    # A config that transformers knows, for a model that only its own code does:
    settings = {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    model = ModelConfig(name=str(tmp_path))
    with pytest.raises(ModelError, match="Python code of its own") as caught:
        describe_model(model, read_shape(model)[0], "cpu")
    assert "--trust-remote-code" in caught.value.remedy


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers in config.json of"),
        ({"num_attention_heads": 0}, "num_attention_heads in config.json of"),
        ({"num_attention_heads": 3}, "cannot be used"),
        ({"rope_parameters": "yarn"}, "cannot be used"),
        ({"num_hidden_layers": 2}, "asks for 2 layers, but its weights hold 3"),
    ],
)
def test_a_config_that_will_not_do_is_an_error(
    tiny_folder: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    whole = json.loads((tiny_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**whole, **settings}))
    (tmp_path / "model.safetensors").symlink_to(tiny_folder / "model.safetensors")
    with pytest.raises(ModelError, match=words) as caught:
        read_shape(ModelConfig(name=str(tmp_path)))
    assert caught.value.remedy


def test_a_model_whose_depth_its_config_does_not_say_is_an_error(tmp_path: Path) -> None:
    CONFIG_MAPPING["gemma3"]().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not say how many decoder layers"):
        plan_run(LabConfig(model=ModelConfig(name=str(tmp_path))))


def test_more_labelled_tokens_than_there_are_is_an_error(tiny_folder: Path) -> None:
    config = LabConfig(model=ModelConfig(name=str(tiny_folder)))
    with pytest.raises(ConfigError, match="201 tokens of 200"):
        plan_run(config, labelled=201)


def test_auto_takes_what_fits_the_memory_it_plans_for(tmp_path: Path) -> None:
    tiny_shape("llama", 3).save_pretrained(tmp_path)
    config = lab_config(Case("llama", 3, 8, 64, "sft", memory="auto"), tmp_path)

    def plan(memory_gib: float | None) -> MemoryPlan:
        (found,) = plan_run(config, device="cpu", memory_gib=memory_gib)
        return found

    small, large, unknown = plan(0.01), plan(80), plan(None)
    assert (small.activation_memory, large.activation_memory, unknown.activation_memory) == ("lowest", "speed", "speed")
    assert small.peak_bytes < large.peak_bytes == unknown.peak_bytes
