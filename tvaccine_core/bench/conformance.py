"""Replay of reference traces: does a method compute what its authors' own code computed?

A trace folder holds a tiny random Llama's parameters, batches, and the results of each training step of the released
code: losses, layer scores, gradient and perturbation norms, gradients, and the parameters after the last step. The
replay runs the same steps through the lab's method and reports the worst relative error of each quantity: relative L2
per tensor, per number for scalars. Randomness does not matter: the authors' drawn layers are forced.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tvaccine_core.config import AlignmentMethod, SFTConfig, TVaccineConfig, VaccineConfig
from tvaccine_core.errors import ConfigError, DataError
from tvaccine_core.methods import capabilities_of, load_method
from tvaccine_core.methods.base import Batch, Method, MethodContext
from tvaccine_core.passes.perturbation import EPSILON, l2_norm

TOLERANCE = 1e-4
"""Largest relative error of a method that conforms."""

CONFIGS: dict[str, Callable[[Mapping[str, Any]], AlignmentMethod]] = {
    "sft": lambda given: SFTConfig(),
    "vaccine": lambda given: VaccineConfig(rho=given["rho"]),
    "tvaccine": lambda given: TVaccineConfig(
        rho=given["rho"], num_layers=given["num_layers"], freezing=given["adapter_freezing"]
    ),
}
"""A trace's hyperparameters as the method's config. Schedules are left out: the trace says which layers were drawn."""


@dataclass(frozen=True)
class ConformanceReport:
    """Outcome of one replay."""

    folder: Path
    method: str
    rows: tuple[tuple[str, float], ...]
    """(quantity, worst relative error); infinite if something is missing, superfluous or not a number."""

    @property
    def passed(self) -> bool:
        """True if every quantity is within the tolerance."""
        return all(error <= TOLERANCE for _, error in self.rows)


@dataclass
class _Worst:
    """The worst relative error so far, by quantity."""

    errors: dict[str, float] = field(default_factory=dict)

    def tensor(self, quantity: str, ours: Tensor, theirs: Tensor) -> None:
        """Relative L2 error of a tensor."""
        if ours.shape != theirs.shape:
            self.add(quantity, math.inf)
            return
        difference = float((ours.detach().double() - theirs.double()).norm())
        reference = float(theirs.double().norm())
        if reference:
            self.add(quantity, difference / reference)
        else:
            self.add(quantity, math.inf if difference else 0.0)

    def numbers(self, quantity: str, ours: Iterable[Tensor], theirs: Iterable[float]) -> None:
        """Relative error of each number."""
        left, right = list(ours), list(theirs)
        if len(left) != len(right):
            self.add(quantity, math.inf)
        for mine, reference in zip(left, right, strict=False):
            self.tensor(quantity, mine.double(), torch.tensor(reference, dtype=torch.float64))

    def names(self, quantity: str, ours: set[str], theirs: set[str]) -> None:
        """Zero if the sets are equal, else infinite."""
        self.add(quantity, 0.0 if ours == theirs else math.inf)

    def add(self, quantity: str, error: float) -> None:
        worst = self.errors.get(quantity, 0.0)
        self.errors[quantity] = max(worst, math.inf if math.isnan(error) else error)


def replay(folder: Path) -> ConformanceReport:
    """Replay the trace in `folder` through the lab's method.

    Raises:
        DataError: the folder is not a trace, or its optimiser or constants are not the lab's.
        ConfigError: the lab cannot replay the trace's method; the message names it.
    """
    trace = _read_trace(folder)
    name = trace["method"]
    if name not in CONFIGS:
        raise ConfigError(
            f"{folder} is a trace of method {name!r}, which the lab cannot replay.",
            remedy=f"Traces of these methods can be replayed: {', '.join(CONFIGS)}.",
        )
    try:
        return ConformanceReport(folder, name, tuple(_replay(folder, trace).errors.items()))
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"The trace in {folder} is not complete: {type(error).__name__}: {error}",
            remedy="Compare trace.json with the traces shipped under tests/conformance.",
        ) from error


def _replay(folder: Path, trace: Mapping[str, Any]) -> _Worst:
    model = _build_model(trace, _read_tensors(folder / "initial.safetensors"))
    method: Any = _build_method(trace, model)
    draws = capabilities_of(method.config).draw_every
    parameters = dict(model.named_parameters())
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=trace["optimizer"]["lr"])
    worst = _Worst()

    for index, expected in enumerate(trace["steps"]):
        losses = []
        if draws:
            if "layer_scores" in expected:
                scores, loss = method.score_layers(_batch(trace["harmful_batches"][expected["harmful_batch"]]))
                worst.numbers("layer scores", scores, expected["layer_scores"])
                losses.append(loss)
            method.set_layers(expected["active_layers"])

        batch = _batch(trace["alignment_batches"][expected.get("alignment_batch", index)])
        metrics = method.training_step(model, batch, index)
        losses += [metrics[key] for key in ("loss", "perturbed_loss") if key in metrics]
        worst.numbers("losses", losses, expected["losses"])
        if "perturbation_norms" in expected:
            clean = [value for key, value in metrics.items() if key.startswith("clean_grad_norm.")]
            worst.numbers("clean gradient norms", clean, _in_layer_order(expected["clean_grad_norms"]))
            norms = method.perturbation.norms.values()
            worst.numbers("perturbation norms", norms, _in_layer_order(expected["perturbation_norms"]))

        gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        worst.names("which parameters have a gradient", set(gradients), set(expected["grad_norms"]))
        shared = sorted(gradients.keys() & expected["grad_norms"].keys())
        worst.numbers(
            "gradient norms",
            [l2_norm(gradients[name]) for name in shared],
            [expected["grad_norms"][name] for name in shared],
        )
        if index == 0:
            _compare(worst, "gradients of step 0", gradients, _read_tensors(folder / "first_step_grads.safetensors"))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    final = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    _compare(worst, "parameters after the last step", final, _read_tensors(folder / "final.safetensors"))
    return worst


def _compare(worst: _Worst, quantity: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    worst.names(quantity, set(ours), set(theirs))
    for name in ours.keys() & theirs.keys():
        worst.tensor(quantity, ours[name], theirs[name])


def _in_layer_order(norms: Mapping[str, float] | list[float]) -> list[float]:
    return norms if isinstance(norms, list) else [norms[key] for key in sorted(norms, key=int)]


def _read_trace(folder: Path) -> dict[str, Any]:
    try:
        trace = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no readable trace.json: {error}", remedy="Give the folder of a conformance trace."
        ) from error
    if not isinstance(trace, dict) or "method" not in trace:
        raise DataError(f"trace.json in {folder} names no method.", remedy="Give the folder of a conformance trace.")
    return trace


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"Cannot read {path}: {error}", remedy="Restore the trace's safetensors files.") from error


def _build_model(trace: Mapping[str, Any], initial: Mapping[str, Tensor]) -> nn.Module:
    """The trace's tiny Llama with its parameters before step 0, float32 on the CPU, eager attention."""
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**{**trace["llama_config"], "attn_implementation": "eager"}))
    if trace["lora_config"] is not None:
        model = get_peft_model(model, LoraConfig(**trace["lora_config"]))  # pyright: ignore[reportArgumentType]
    parameters = dict(model.named_parameters())
    if parameters.keys() != initial.keys():
        raise DataError(
            f"The trace's parameters are not the model's: {sorted(parameters.keys() ^ initial.keys())[:4]} …",
            remedy="llama_config, lora_config and initial.safetensors must belong together.",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != initial[name].shape:
                raise DataError(
                    f"{name} is {tuple(initial[name].shape)} in initial.safetensors, {tuple(parameter.shape)} by "
                    "llama_config.",
                    remedy="llama_config, lora_config and initial.safetensors must belong together.",
                )
            parameter.copy_(initial[name])
    return model.train()


def _build_method(trace: Mapping[str, Any], model: nn.Module) -> Method[Any]:
    given = trace["hyperparameters"]
    if given.get("EPS", EPSILON) != EPSILON:
        raise DataError(f"The trace uses EPS {given['EPS']}, the lab {EPSILON}.", remedy="Record it with EPS 1e-7.")
    if trace["optimizer"]["name"] != "SGD":
        raise DataError(f"The trace uses {trace['optimizer']['name']}, the replay plain SGD.", remedy="Use SGD.")
    method = load_method(CONFIGS[trace["method"]](given))

    def no_harmful_data(size: int, generator: torch.Generator | None) -> Batch:
        raise DataError("A replay forces the layers; it draws no harmful data.", remedy="Report this as a bug.")

    generator = torch.Generator().manual_seed(0)
    streams = {"harmful": no_harmful_data}
    method.setup(model, MethodContext(generator, lambda value: value, lambda event: None, streams=streams))
    return method


def _batch(given: Mapping[str, list[list[int]]]) -> Batch:
    return Batch(
        input_ids=torch.tensor(given["input_ids"]),
        attention_mask=torch.tensor(given["attention_mask"]),
        labels=torch.tensor(given["labels"]),
    )
