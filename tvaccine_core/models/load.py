"""Loading a base model: the sandbox's, a local folder's or a Hugging Face hub's; safetensors only.

A truncated file, a missing tensor, a vocabulary larger than the embedding: all are found before anything trains.
Remote code runs only if a config asks for it.

Whatever the storage of the base (float32, bfloat16, int8, NF4), adapters train in float32 (see `states`).
Cost: one pass over the weight files to hash a local model; hub models are named by repository and revision.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.errors import RepositoryNotFoundError as HubRepositoryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tvaccine_core.config import ModelConfig
from tvaccine_core.data.prompts import answer_end, encode_prompts
from tvaccine_core.errors import ModelError, OutOfMemoryError, lacks_memory
from tvaccine_core.json_files import file_size
from tvaccine_core.models.anatomy import find_blocks
from tvaccine_core.models.files import (
    check_folder,
    check_id,
    check_weights,
    code_is_off,
    explain,
    model_folder,
    needs_code,
    not_cached,
    weight_files,
)
from tvaccine_core.models.sizes import Shapes, check_count, list_some

__all__ = ["LoadedModel", "find_blocks", "load_model", "pick_device"]

log = logging.getLogger(__name__)

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "*.txt"]
HUB_FILES_IGNORED = ["consolidated*", "original/*", "onnx/*", "openvino/*"]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A base model in memory, frozen, in eval mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    device: torch.device
    key: str
    """Hash of the base weights and their storage; part of every state's hash."""
    answer_end: int | None
    """Token that ends an answer, see `answer_end` in `data.prompts`."""

    @property
    def pad_id(self) -> int:
        """Token for padding; it is masked everywhere, so any token is right if the tokenizer names none."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        return 0

    @property
    def num_embeddings(self) -> int:
        """Number of token ids that the model knows; the first is 0."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    def require_known(self, ids: Iterable[int]) -> None:
        """Raise `ModelError` if a token id has no row in the embedding: on a GPU it would end the process."""
        highest = max(ids, default=0)
        if highest >= self.num_embeddings:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise ModelError(
                f"The tokenizer writes {token!r} as token {highest}, but the model's embedding has "
                f"{self.num_embeddings} rows: the vocabulary grew and the model did not.",
                remedy="Call `model.resize_token_embeddings(len(tokenizer))`, train the new rows and save both; "
                "or use the tokenizer that the model came with.",
            )

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer, from the template, the tokenizer and the model's generation config."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        values = self.answer_end, self.tokenizer.eos_token_id, configured
        flat = [end for value in values for end in (value if isinstance(value, list) else [value])]
        return frozenset(end for end in flat if isinstance(end, int))


def load_model(config: ModelConfig, num_threads: int | None = None) -> LoadedModel:
    """Load what `config` names.

    Args:
        config: `name` is `sandbox`, a folder, or a hub id.
        num_threads: CPU threads of this process from now on; None changes nothing. Results are bit-equal only for the
            same number.

    Raises:
        ModelError: missing, gated, unreachable, corrupt, without safetensors or tokenizer, or not loadable on this
            device; its vocabulary is larger than its embedding.
        OutOfMemoryError: it does not fit into memory.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    transformers_logging.disable_progress_bar()  # a worker has no terminal, and the lab reports progress itself
    device = pick_device(config.device)
    if config.trust_remote_code:
        log.warning("trust_remote_code is on: code that comes with %s runs with your rights", config.name)
    folder, identity = _locate(config.name, code=config.trust_remote_code)
    settings = check_folder(folder, config.name)
    shapes = check_weights(folder, config.name, settings, code=config.trust_remote_code)
    key = hashlib.sha256(f"{identity or _hash_weights(folder, config)}/{config.quantization}/{config.dtype}".encode())
    tokenizer = _load_tokenizer(folder, config)
    if not config.trust_remote_code:
        _check_count(folder, config, settings, shapes)
    model = _read_model(folder, config, device, shapes)
    if config.quantization == "none":
        model.to(device)
    _disarm_cpu_repacking(model)
    model.requires_grad_(False)
    model.eval()
    loaded = LoadedModel(model, tokenizer, config, device, key.hexdigest(), answer_end(tokenizer))
    _check_vocabulary(loaded)
    return loaded


def _check_count(folder: Path, config: ModelConfig, settings: dict[str, Any], shapes: Shapes) -> None:
    """Raise `ModelError` if the config asks for a model far larger than its weights: loading would first allocate it.

    To count its parameters, the model is built without memory. A model with its own Python code is not checked.
    """
    auto: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = auto.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:  # a config can be wrong in many ways
        if lacks_memory(error):
            raise _no_memory(folder, config, torch.device("cpu")) from error
        raise _cannot_be_loaded(error, folder, config, "model") from error
    asked = sum(parameter.numel() for parameter in model.parameters())
    computed = sum(buffer.numel() for buffer in model.buffers())
    num_bytes = sum(path.stat().st_size for path in weight_files(folder, config.name))
    check_count(asked, computed, settings, shapes, num_bytes, config.name)


def _read_model(folder: Path, config: ModelConfig, device: torch.device, shapes: Shapes) -> Any:
    auto: Any = AutoModelForCausalLM  # with loading info it returns a pair, which its stub does not know
    try:
        model, report = auto.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **_storage(config, device),
        )
    except ModelError:
        raise
    except Exception as error:  # a model's own code may raise anything
        if lacks_memory(error):
            raise _no_memory(folder, config, device) from error
        raise _cannot_be_loaded(error, folder, config, "model") from error
    if missing := report["missing_keys"]:
        raise ModelError(
            f"The weights of {config.name} lack {len(missing):,} tensors of the model: {list_some(missing)}; "
            "they would be random.",
            remedy="Download or copy all of the model again; make sure that it was saved with its head, as a causal "
            "language model.",
        )
    if surplus := [tensor for tensor in report["unexpected_keys"] if not _is_no_weight(tensor, shapes)]:
        raise ModelError(
            f"The weights of {config.name} hold {len(surplus):,} tensors that the model of its config.json has no "
            f"place for: {list_some(surplus)}; they would be left out.",
            remedy="Use the config.json that the weights were saved with; or, if the model is right without them, load "
            "it once with transformers and save it again.",
        )
    return model


_TABLES = ((re.compile(r"rotary_emb\.inv_freq$"), 1), (re.compile(r"attn\.bias$|attention\.bias$"), 4),
           (re.compile(r"masked_bias$"), 0), (re.compile(r"(^|\.)position_ids$"), 2))  # fmt: skip
"""Tables that older versions of transformers saved with the weights and newer ones compute: rotary frequencies, causal
masks (1, 1, T, T), the masks' fill value, positions. With their number of dimensions, since a bias may be a weight."""


def _is_no_weight(tensor: str, shapes: Shapes) -> bool:
    """True for a tensor of a checkpoint that may be ignored silently.

    transformers itself ignores whatever a model's class declares: extra heads, layers that predict several tokens
    ahead, the towers of a model whose text part is loaded. A tower that the class does not declare is an error: then
    class and checkpoint do not belong together.
    """
    return any(name.search(tensor) and len(shapes.get(tensor, ())) == dims for name, dims in _TABLES)


def _cannot_be_loaded(error: BaseException, folder: Path, config: ModelConfig, what: str) -> ModelError:
    if needs_code(error) and not config.trust_remote_code:
        return code_is_off(config.name)
    remedy = (
        "Save the tokenizer into the model's folder, or download or copy its files again."
        if what == "tokenizer"
        else "Use a decoder-only model that transformers knows; if a file is damaged or does not fit its config.json, "
        "download or copy it again."
    )
    return ModelError(
        f"The {what} of {config.name} cannot be loaded: {explain(error, config.name, folder)}", remedy=remedy
    )


def _no_memory(folder: Path, config: ModelConfig, device: torch.device) -> OutOfMemoryError:
    size = sum(path.stat().st_size for path in weight_files(folder, config.name)) / 2**30
    smaller = "a smaller model" if config.quantization == "nf4" else "quantization nf4 or a smaller model"
    return OutOfMemoryError(
        f"{config.name} does not fit into the memory of {device}: its weight files hold {size:.1f} GiB.",
        remedy=f"Close other programs and resume, or start a new run with {smaller}.",
    )


def _check_vocabulary(loaded: LoadedModel) -> None:
    """Every token that a text can hold must have a row in the embedding.

    Special tokens without a row are allowed if no text writes them: Gemma 3 1B's tokenizer has one, for images.
    """
    tokenizer = loaded.tokenizer
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ordinary = set(tokenizer.get_vocab().values()) - special
    roles: list[Any] = [loaded.pad_id, loaded.answer_end, tokenizer.eos_token_id, tokenizer.bos_token_id]
    used = {token for token in roles if isinstance(token, int)} | set(encode_prompts(tokenizer, ["prompt"])[0])
    loaded.require_known(ordinary | used)


def pick_device(wish: str) -> torch.device:
    """The device to run on; `auto` takes the best available.

    Raises:
        ModelError: this machine has no such device.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wish == "auto":
        return torch.device(next(name for name, available in here.items() if available))
    if not here.get(wish, False):
        raise ModelError(
            f"This machine has no {wish} device for PyTorch {torch.__version__}.",
            remedy="Set the device to auto or cpu, or install a PyTorch build for your hardware.",
        )
    return torch.device(wish)


def _locate(name: str, *, code: bool) -> tuple[Path, str | None]:
    """Folder of the model, and `repository@revision` if it came from a hub."""
    folder = model_folder(name)
    if folder is not None:
        return folder, None
    check_id(name)
    try:
        wanted = [*HUB_FILES, "*.py"] if code else HUB_FILES
        found = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=HUB_FILES_IGNORED))
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: its owner asks you to accept terms first.",
            remedy=f"Accept them at https://huggingface.co/{name}, then log in: hf auth login (or set HF_TOKEN).",
        ) from error
    except HubRepositoryNotFoundError as error:
        raise ModelError(
            f"There is no model {name!r} on the Hugging Face hub that you may see, and no folder of that name here.",
            remedy="Check the spelling; for a private model log in: hf auth login (or set HF_TOKEN).",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise not_cached(name, explain(error, name, None)) from error
    if file_size(found / "config.json", f"config.json of {name}") is None:
        raise ModelError(
            f"{name} is not a transformers model: it has no config.json.",
            remedy="Give the id of a causal language model; of an adapter, give its base.",
        )
    return found, f"{name}@{found.name}"


def _load_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except BaseException as error:  # tokenizers raises plain Exception for a broken file, and Rust's panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _cannot_be_loaded(error, folder, config, "tokenizer") from error


def _hash_weights(folder: Path, config: ModelConfig) -> str:
    """SHA-256 over the weight files and the config or code that interprets them."""
    digest = hashlib.sha256()
    code = sorted(folder.glob("*.py")) if config.trust_remote_code else []
    for path in [folder / "config.json", *code, *weight_files(folder, config.name)]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _storage(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` that decide how the weights are stored in memory."""
    if config.quantization == "none":
        return {"dtype": getattr(torch, config.dtype)}
    if device.type == "mps":
        raise ModelError(
            f"bitsandbytes cannot store {config.quantization} weights on mps.",
            remedy="Set quantization to none, or the device to cpu.",
        )
    if config.quantization == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    else:
        compute = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"quantization_config": quantization, "dtype": dtype, "device_map": {"": device}}


def _disarm_cpu_repacking(model: PreTrainedModel) -> None:
    """Stop bitsandbytes on a CPU with AVX512-bf16 from repacking 4-bit weights in place at the first eval forward.

    Training mode does not undo it, and later backward passes would silently lose the frozen base's gradient path.
    """
    linears: list[Any] = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    for module in linears:
        module.support_avx512bf16_for_cpu = False
