"""The training loop: `for event in fit(...)`. The method brings gradients, the loop does everything else.

Optimiser AdamW (Loshchilov and Hutter, arXiv:1711.05101), linear warm-up then cosine or constant, clipping to a global
norm, token-weighted accumulation: the gradient of a step is the mean over all its labelled tokens, however they are
split. The same seed, data and thread count give the same bytes, resumed or not: a step's examples are a pure function
of its number, and a checkpoint holds weights, optimiser moments, the method's state and its generator.
Several processes (`ranks`) divide each micro-batch; gradient and perturbation are those of the whole micro-batch. So
one process or many give the same adapters to rounding, except for dropout, whose masks differ.
Cost: the method's passes, plus about 2 % for optimiser, clipping and one wait for the device per step.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tvaccine_core.config import ActivationMemory, OptimisationConfig
from tvaccine_core.data.batches import Schedule, derive_seed, require_labels
from tvaccine_core.data.prompts import MASKED, Encoded
from tvaccine_core.errors import CancelledError, NonFiniteLossError, OutOfMemoryError, TrainingError
from tvaccine_core.methods.base import Method, MethodContext
from tvaccine_core.passes.memory import choose_mode, measure_room, measure_shape
from tvaccine_core.passes.self_check import EXCERPTS, check_fast_paths
from tvaccine_core.processes import ALONE, Ranks, Word
from tvaccine_core.records import CheckpointRecord, Event, MessageRecord, StepRecord
from tvaccine_core.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from tvaccine_core.training.collate import Sampler, collate


def learning_rate_at(step: int, config: OptimisationConfig) -> float:
    """Learning rate of optimiser step `step` (0-based): never 0 before the last step, at its peak after the warm-up."""
    warmup = round(config.warmup_ratio * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def fit(
    model: nn.Module,
    method: Method,
    streams: Mapping[str, Sequence[Encoded]],
    config: OptimisationConfig,
    *,
    seed: int,
    pad_id: int,
    checkpoint_dir: Path | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
    activation_memory: ActivationMemory = "auto",
    fast_paths: bool = True,
) -> Iterator[Event]:
    """Train the parameters of `model` that require a gradient, and report every step.

    Args:
        model: the peft model with adapters; put into training mode here. Between two events the caller may evaluate
            it, but must restore modes and adapters.
        method: makes the gradients.
        streams: training examples by the name of their stream. Steps train on `user`, or on `alignment` if there is no
            `user`, unless the method picks another stream. The method may draw batches from all other streams.
        config: steps, batch, learning rate.
        seed: for the data's order and the method's generator.
        pad_id: padding token.
        checkpoint_dir: folder of resumable checkpoints; None for none. With several processes only the leader's counts.
        resume: go on from the newest checkpoint in the folder, or start anew if there is none.
        should_stop: asked before every step; training stops if any process says True.
        ranks: the processes that train together; their other arguments must be equal.
        activation_memory: how much is kept for the backward passes; gradients are the same, to rounding.
        fast_paths: whether the lab's faster forms may replace the model's modules; gradients are the same, to rounding.

    Yields:
        A `StepRecord` per step (the method's own records before it), `CheckpointRecord`s, `MessageRecord`s. All records
        of step k are yielded before its checkpoint is written: a reader that has a checkpoint's record has all earlier
        records. The method's `finish` runs after the last record.

    Raises:
        CancelledError: `should_stop` returned True; a checkpoint was written first.
        NonFiniteLossError: loss or gradient norm is not finite; the step changed nothing, checkpoints are kept.
        OutOfMemoryError: the device is full.
        DataError: an example has no label, or there is no example.
        ConfigError: a stream that the method needs or picks is missing; or the method's `setup` raises it.
        TrainingError: nothing to train; a checkpoint is unreadable, of another training, or cannot be written.
    """
    loop = _Loop(model, method, streams, config, seed=seed, pad_id=pad_id, checkpoint_dir=checkpoint_dir, ranks=ranks)
    yield from loop.set_up(activation_memory, fast_paths)
    if resume:
        yield from loop.take_up_a_checkpoint()
    model.train()
    for step in range(loop.done, config.steps):
        word = ranks.agree(Word.STOP if should_stop() else Word.GO_ON)
        if word != Word.GO_ON:
            if word == Word.STOP:
                yield from loop.save()
            raise CancelledError(f"Stopped after step {step} of {config.steps}.", remedy="Resume to go on from there.")
        record = loop.take_step(step)
        yield from loop.take_reports()
        yield record
        if config.checkpoint_every and (loop.done % config.checkpoint_every == 0 or loop.done == config.steps):
            yield from loop.save()
    loop.finish()
    yield from loop.take_reports()


class _Loop:
    """One training: its parts and its progress."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        streams: Mapping[str, Sequence[Encoded]],
        config: OptimisationConfig,
        *,
        seed: int,
        pad_id: int,
        checkpoint_dir: Path | None,
        ranks: Ranks,
    ) -> None:
        for examples in streams.values():
            require_labels(examples)
        self.done = 0
        """Optimiser steps."""
        self._model, self._method, self._config, self._streams = model, method, config, streams
        self._pad_id, self._ranks, self._checkpoint_dir = pad_id, ranks, checkpoint_dir
        self._schedule = Schedule(
            streams,
            [method.stream_of(step) for step in range(config.steps)],
            config.batch_size,
            derive_seed(seed, "order"),
            accumulation=config.accumulation,
        )
        self._trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not self._trainable:
            raise TrainingError("No parameter of the model requires a gradient.", remedy="Add an adapter and train it.")
        self._device = next(iter(self._trainable.values())).device
        self._optimiser = torch.optim.AdamW(
            self._trainable.values(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            # 0.7 ms for 112 small tensors on a CPU; foreach takes 3.5, a loop 9
            fused=self._device.type in ("cpu", "cuda"),
        )
        self._generator = torch.Generator().manual_seed(derive_seed(seed, "method"))
        self._samplers = {
            name: Sampler(examples, pad_id, self._device, ranks, derive_seed(seed, "sample", name))
            for name, examples in streams.items()
            if examples
        }
        self._reported: list[Event] = []
        self._elapsed_s = 0.0
        self._saved: int | None = None
        self._fingerprint = _fingerprint(method, streams, self._schedule.main, config, seed, self._trainable)

    def set_up(self, activation_memory: ActivationMemory, fast_paths: bool) -> Iterator[Event]:
        """Choose the memory mode, set up the method, and agree with the other processes."""
        mode = choose_mode(
            activation_memory,
            measure_shape(
                self._model,
                batch_size=self._config.batch_size,
                length=max(len(example.input_ids) for example in self._schedule.examples()),
                num_labelled=self._config.batch_size * max(e.num_labelled for e in self._schedule.examples()),
            ),
            measure_room(self._model, self._device),
        )
        if activation_memory == "auto" and mode != "speed":
            yield MessageRecord(level="info", text=f"Activation memory: {mode}, the fastest that fits {self._device}.")
        self._method.setup(
            self._model,
            MethodContext(
                generator=self._generator,
                streams=self._samplers,
                reduce_sum=self._ranks.reduce_sum,
                emit=self._reported.append,
                rank=self._ranks.index,
                activation_memory=mode,
                fast_paths=fast_paths,
            ),
        )
        first = [_excerpt(one, length) for one, length in zip(self._schedule.examples(), EXCERPTS, strict=False)]
        tokens = collate(first, self._pad_id).to(self._device).prepare()
        yield from check_fast_paths(self._method.passes, self._model, tokens)
        self._ranks.require_same(self._fingerprint, "settings, data and adapters")

    def take_up_a_checkpoint(self) -> Iterator[Event]:
        """Go on from the newest good checkpoint, if there is one."""
        checkpoint = _find_checkpoint(self._checkpoint_dir, self._fingerprint, self._ranks)
        if checkpoint is None:
            return
        self.done, self._elapsed_s = checkpoint.step, checkpoint.elapsed_s
        _restore(checkpoint, self._trainable, self._optimiser, self._method, self._generator)
        for sentence in checkpoint.skipped:
            yield MessageRecord(level="warning", text=sentence, remedy=f"Resumed from step {self.done} instead.")
        self._saved = self.done or None

    def save(self) -> Iterator[Event]:
        """Write a checkpoint, unless this step has one already or there is no folder for it."""
        if self._checkpoint_dir is None or self._saved == self.done or not self._ranks.leads:
            return
        path = save_checkpoint(
            self._checkpoint_dir,
            step=self.done,
            elapsed_s=self._elapsed_s,
            fingerprint=self._fingerprint,
            tensors=_snapshot(self._trainable, self._optimiser, self._method, self._generator),
        )
        self._saved = self.done
        yield CheckpointRecord(step=self.done, path=path.name)

    def take_step(self, step: int) -> StepRecord:
        """One optimiser step, 0-based."""
        began = time.perf_counter()
        learning_rate = learning_rate_at(step, self._config)
        for sampler in self._samplers.values():
            sampler.begin(step)
        with self._memory_errors(f"Step {step + 1}"):
            metrics, num_tokens = self._gather_gradients(step)
            grad_norm, values = self._update(step, learning_rate, metrics)
        self.done = step + 1
        self._elapsed_s += time.perf_counter() - began
        return StepRecord(
            step=self.done,
            num_steps=self._config.steps,
            loss=values.pop("loss"),
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            elapsed_s=self._elapsed_s,
            num_tokens=num_tokens,
            metrics=values,
        )

    def take_reports(self) -> Iterator[Event]:
        """Events that the method emitted since the last call."""
        yield from self._reported
        self._reported.clear()

    def finish(self) -> None:
        """Run the method's `finish`. A checkpoint holds the weights before it, so a resumed run also finishes once."""
        self._optimiser.zero_grad(set_to_none=True)
        for sampler in self._samplers.values():
            sampler.begin(self._config.steps)
        with self._memory_errors("The end of the training"):
            self._method.finish(self._model)

    def _gather_gradients(self, step: int) -> tuple[dict[str, Tensor], int]:
        """Fill every `.grad` from this process's share of the step's examples; returns metrics and number of labels."""
        micro_batches = self._schedule.micro_batches(step)
        num_tokens = sum(example.num_labelled for batch in micro_batches for example in batch)
        metrics: dict[str, Tensor] = {}
        self._optimiser.zero_grad(set_to_none=True)
        for examples in micro_batches:
            batch = collate(examples, self._pad_id, total_labelled=num_tokens, ranks=self._ranks).to(self._device)
            for name, value in self._method.training_step(self._model, batch, step).items():
                value = value * batch.weight
                metrics[name] = metrics[name] + value if name in metrics else value
        return metrics, num_tokens

    def _update(self, step: int, learning_rate: float, metrics: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
        """Sum gradients over processes, clip them, change the weights; returns the gradients' norm and the metrics."""
        parameters = list(self._trainable.values())
        self._ranks.sum_gradients(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            raise TrainingError(f"Step {step + 1} gave no parameter a gradient.", remedy="Report this method.")
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        means = self._ranks.reduce_sum(torch.stack([value.float() for value in metrics.values()]))
        norm, *numbers = torch.cat([grad_norm.float()[None], means]).tolist()
        values = dict(zip(metrics, numbers, strict=True))
        if not (math.isfinite(norm) and math.isfinite(values["loss"])):
            raise NonFiniteLossError(
                f"Step {step + 1}: the loss is {values['loss']}, the gradient norm {norm}.",
                step=step + 1,
                remedy="Lower the learning rate or the perturbation, then start again; "
                "resuming goes back to the last checkpoint.",
            )
        if norm > self._config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._config.max_grad_norm, grad_norm)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._optimiser.step()
        return norm, values

    @contextmanager
    def _memory_errors(self, when: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"{when}: {self._device} has no memory left for batches of {self._config.batch_size}.",
                remedy="Lower batch_size (and raise accumulation by as much), lower max_length, or set "
                "activation_memory to lowest.",
            ) from error


def _excerpt(example: Encoded, length: int) -> Encoded:
    """At most `length` tokens around the first labelled token: two thirds before it, one third from it on."""
    first = next(index for index, label in enumerate(example.labels) if index and label != MASKED)
    part = slice(max(0, first - length + length // 3), first + length // 3)
    return replace(example, input_ids=example.input_ids[part], labels=example.labels[part])


def _find_checkpoint(folder: Path | None, fingerprint: str, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint to resume from. The leader reads it, since the others' machines may not have it."""
    found = load_checkpoint(folder, fingerprint) if folder is not None and ranks.leads else None
    note, tensors = ranks.share_tensors(
        found and {"step": found.step, "elapsed_s": found.elapsed_s}, found.tensors if found else {}
    )
    return found if ranks.leads or note is None else Checkpoint(**note, tensors=tensors, skipped=())


def _fingerprint(
    method: Method,
    streams: Mapping[str, Sequence[Encoded]],
    main: str,
    config: OptimisationConfig,
    seed: int,
    trainable: dict[str, nn.Parameter],
) -> str:
    """Hash of everything that must be equal to resume from a checkpoint; `checkpoint_every` may differ."""
    digest = hashlib.sha256()
    digest.update(config.model_dump_json(exclude={"checkpoint_every"}).encode())
    digest.update(f"{method.config.model_dump_json()}/{seed}".encode())
    for name, parameter in trainable.items():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
    for name in (main, *sorted(set(streams) - {main})):
        if name not in (main, "harmful"):  # so that checkpoints older than the other streams stay valid
            digest.update(name.encode())
        for example in streams[name]:
            digest.update(f"{example.input_ids}{example.labels}".encode())
    return digest.hexdigest()


def _snapshot(
    trainable: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, method: Method, generator: torch.Generator
) -> dict[str, Tensor]:
    tensors = {"generator": generator.get_state()}
    for name, parameter in trainable.items():
        tensors[f"parameter/{name}"] = parameter.detach()
        # A parameter that was frozen in every step so far has no moments yet.
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{key}/{name}"] = value
    for key, value in method.state_dict().items():
        tensors[f"method/{key}"] = value.detach().clone()
    return tensors


def _restore(
    checkpoint: Checkpoint,
    trainable: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    method: Method,
    generator: torch.Generator,
) -> None:
    method_state: dict[str, Tensor] = {}
    for key, value in checkpoint.tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "parameter":
            with torch.no_grad():
                trainable[rest].copy_(value)
        elif kind == "optimiser":
            field, _, name = rest.partition("/")
            optimiser.state[trainable[name]][field] = value.to(trainable[name].device)
        elif kind == "method":
            method_state[rest] = value
    generator.set_state(checkpoint.tensors["generator"])
    method.load_state_dict(method_state)


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA and MPS raise a class of their own; the CPU allocator is known by its message only."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
