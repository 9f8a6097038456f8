"""A model with all its tensors but no memory: built from its config alone, stored as `load_model` would store it.

Its tensors are PyTorch's `FakeTensor`s: they have true shapes, types and storage sizes, but no bytes. The product's own
code runs on them unchanged. Quantised weights are given the parts and sizes of bitsandbytes; its quantiser cannot run,
because it reads values.

The fake device is always the CPU, also in a plan for a GPU: without a GPU, PyTorch does not know how its kernels divide
memory. `device` decides the precision of quantised models, as in `load_model`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedTokenizerFast
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from tvaccine_core.config import AdapterConfig, ModelConfig
from tvaccine_core.errors import ModelError
from tvaccine_core.models.files import code_is_off, explain, model_folder, needs_code
from tvaccine_core.models.load import LoadedModel
from tvaccine_core.states.model_states import ModelStates

_BNB: Any = bnb.nn
"""Typed loosely: bitsandbytes does not declare its exports."""

WORD = "word"
BLOCK, SECOND_BLOCK = 64, 256
"""Weights per scale in bitsandbytes' NF4, and scales per second scale when scales are quantised again."""
ALIGNED = "aligned"
"""Name of the adapter that is trained."""


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for which every word is token 0, and nothing ends a text."""
    tokenizer = Tokenizer(models.WordLevel({WORD: 0}, unk_token=WORD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def compute_dtype(config: ModelConfig, device: str) -> torch.dtype:
    """Type of unquantised weights and of the arithmetic; quantised models compute in bfloat16 on a GPU."""
    if config.quantization == "none":
        return getattr(torch, config.dtype)
    return torch.bfloat16 if device == "cuda" else torch.float32


def describe_model(config: ModelConfig, shape: PretrainedConfig, device: str) -> nn.Module:
    """The model that `load_model` would load, on the meta device: modules and shapes; quantised weights not yet packed.

    Raises:
        ModelError: transformers cannot build a causal language model of this config.
    """
    dtype = compute_dtype(config, device)
    auto: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = auto.from_config(shape, dtype=dtype, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # a config can be wrong in many ways, and a model's own code may raise anything
        if needs_code(error) and not config.trust_remote_code:
            raise code_is_off(config.name) from error
        raise ModelError(
            "transformers cannot build a causal language model of the config of "
            f"{config.name}: {explain(error, config.name, model_folder(config.name))}",
            remedy="Use a decoder-only model that transformers knows.",
        ) from error
    if config.quantization != "none":
        _mark_quantised(model, config, dtype)
    return model


def fake_states(config: ModelConfig, shape: PretrainedConfig, device: str, adapter: AdapterConfig) -> ModelStates:
    """The model of `config` without weights, with a one-word tokenizer and a fresh adapter `ALIGNED`.

    Raises:
        ModelError: as `describe_model`; or the model lacks the adapter's target modules.
    """
    model: Any = describe_model(config, shape, device)
    model.requires_grad_(False)
    model.eval()
    states = ModelStates(LoadedModel(model, word_tokenizer(), config, torch.device("cpu"), "", None))
    with torch.device("meta"):
        states.add(ALIGNED, adapter, seed=0)
    fakes = _Fakes()
    for module in model.modules():
        fakes.fill(module)
    return states


def storages(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor of the model itself: parameters, buffers, and the extra tensors of quantised linears."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        held: list[Any] = [module]
        weight = module._parameters.get("weight")
        for name in ("quant_state", "CB", "SCB"):
            held.append(getattr(weight, name, None))
        held.append(getattr(module, "state", None))
        for item in held:
            yield from _tensors_in(item)


def _tensors_in(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif item is not None and not isinstance(item, nn.Module):
        for value in getattr(item, "__dict__", {}).values():
            if isinstance(value, Tensor) or type(value).__name__ == "QuantState":
                yield from _tensors_in(value)


def _mark_quantised(model: Any, config: ModelConfig, dtype: torch.dtype) -> None:
    """Put bitsandbytes' linears where `from_pretrained` puts them."""
    if config.quantization == "int8":
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    replace_with_bnb_linear(model, modules_to_not_convert=get_keys_to_not_convert(model), quantization_config=settings)
    model.is_loaded_in_4bit = config.quantization == "nf4"
    model.is_loaded_in_8bit = config.quantization == "int8"
    model.to(dtype)  # the new linears' biases


class _Fakes:
    """Replaces tensors on the meta device by fake tensors; tied tensors stay tied."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def fill(self, module: nn.Module) -> None:
        """Replace the tensors of `module` itself, not of its children."""
        if isinstance(module, _BNB.Linear4bit):
            self._fill_4bit(module)
        elif isinstance(module, _BNB.Linear8bitLt):
            self._fill_8bit(module)
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.device.type == "meta":
                    tensors[name] = self._fake(tensor)  # pyright: ignore[reportArgumentType]

    def _fill_4bit(self, module: Any) -> None:
        marked = module.weight
        num_blocks = -(-marked.numel() // BLOCK)
        with self.mode:
            packed = torch.empty(-(-marked.numel() // 2), 1, dtype=torch.uint8)
            state = QuantState(
                absmax=torch.empty(num_blocks, dtype=torch.uint8),
                shape=marked.shape,
                dtype=module.compute_dtype,
                blocksize=BLOCK,
                code=torch.empty(16),
                quant_type=marked.quant_type,
                offset=torch.empty(()),
                state2=QuantState(
                    absmax=torch.empty(-(-num_blocks // SECOND_BLOCK)),
                    blocksize=SECOND_BLOCK,
                    code=torch.empty(256),
                    dtype=torch.float32,
                ),
            )
        weight: Any = nn.Parameter(packed, requires_grad=False)
        weight.quant_state, weight.quant_type = state, marked.quant_type
        weight.compress_statistics = marked.compress_statistics
        module._parameters["weight"] = weight
        module.quant_state = state
        module.support_avx512bf16_for_cpu = False

    def _fill_8bit(self, module: Any) -> None:
        rows, columns = module.weight.shape
        with self.mode:
            weight: Any = nn.Parameter(torch.empty(rows, columns, dtype=torch.int8), requires_grad=False)
            weight.CB, weight.SCB = weight.data, torch.empty(rows)
        module._parameters["weight"] = weight

    def _fake(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._made:
            with self.mode:
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            made = nn.Parameter(fake, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
            self._made[id(tensor)] = tensor, made
        return self._made[id(tensor)][1]
