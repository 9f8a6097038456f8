"""The training loop: `for event in fit(...)`. The method brings gradients, the loop does everything else.

Optimiser AdamW (Loshchilov and Hutter, arXiv:1711.05101), linear warm-up then cosine or constant, clipping to a global
norm, token-weighted accumulation: the gradient of a step is the mean over all its labelled tokens, however they are
split. The same seed, data and thread count give the same bytes, resumed or not: which examples make a step is a pure
function of its number, and a checkpoint holds weights, optimiser moments, the method's state and its generator.
Several processes (`ranks`) divide each micro-batch; gradient and perturbation are those of the whole one, so one
process or many give the same adapters to rounding (dropout aside: its masks differ).
Cost: the method's passes, plus about 2 % for optimiser, clipping and one wait for the device a step.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tvaccine_core.activation_memory import choose_mode, measure_room, measure_shape
from tvaccine_core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from tvaccine_core.config import ActivationMemory, OptimisationConfig
from tvaccine_core.data.batches import BatchStream, derive_seed, require_labels
from tvaccine_core.data.prompts import MASKED, Encoded
from tvaccine_core.errors import CancelledError, NonFiniteLossError, OutOfMemoryError, TrainingError
from tvaccine_core.methods.base import Batch, Method, MethodContext
from tvaccine_core.ranks import ALONE, Ranks, Word
from tvaccine_core.records import CheckpointRecord, Event, MessageRecord, StepRecord
from tvaccine_core.self_check import EXCERPTS, check_fast_paths


def collate(
    examples: Sequence[Encoded], pad_id: int, *, total_labelled: int | None = None, ranks: Ranks = ALONE
) -> Batch:
    """Pad on the right into one `Batch` on the CPU, prepared for its loss.

    Args:
        examples: at least one.
        pad_id: fills `input_ids`; masked, so its value is of no consequence.
        total_labelled: labelled tokens of the whole optimiser step; the batch's weight is its share of them.
            None: the batch is the whole step.
        ranks: who divides the batch. The examples are dealt in turn, as they come sorted by length; a process that
            gets none takes one that counts for nothing, since all must take part in the sums.
    """
    whole = sum(example.num_labelled for example in examples)
    mine = examples[ranks.index :: ranks.size]
    share = sum(example.num_labelled for example in mine) / whole
    examples = mine or examples[:1]
    longest = max(len(example.input_ids) for example in examples)
    rows = [(example, longest - len(example.input_ids)) for example in examples]
    return Batch(
        input_ids=torch.tensor([[*example.input_ids, *[pad_id] * gap] for example, gap in rows]),
        attention_mask=torch.tensor([[1] * len(example.input_ids) + [0] * gap for example, gap in rows]),
        labels=torch.tensor([[*example.labels, *[MASKED] * gap] for example, gap in rows]),
        weight=share * (1.0 if total_labelled is None else whole / total_labelled),
        share=share,
    ).to("cpu")


def learning_rate_at(step: int, config: OptimisationConfig) -> float:
    """Learning rate of optimiser step `step` (0-based): never 0 before the last step, its peak after the warm-up."""
    warmup = round(config.warmup_ratio * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def fit(
    model: nn.Module,
    method: Method,
    encoded: Sequence[Encoded],
    config: OptimisationConfig,
    *,
    seed: int,
    pad_id: int,
    probe: Sequence[Encoded] = (),
    checkpoint_dir: Path | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
    activation_memory: ActivationMemory = "auto",
    fast_paths: bool = True,
) -> Iterator[Event]:
    """Train what requires a gradient in `model`, and report every step.

    Args:
        model: the peft model, adapters set up; put into training mode here. Between two events the caller may evaluate
            it, if it puts modes and adapters back.
        method: makes the gradients.
        encoded: the training data.
        config: steps, batch, learning rate.
        seed: of the data's order and of the method's generator.
        pad_id: padding token.
        probe: harmful examples for methods that ask for them; may be empty.
        checkpoint_dir: where resumable checkpoints go; None for none. Of several processes only the leader's counts.
        resume: take up from the newest checkpoint there; from the start if there is none.
        should_stop: asked before every step; it is enough that one process wants to stop.
        ranks: the processes that train together, their other arguments equal.
        activation_memory: what is kept for the backward passes; gradients are the same, to rounding.
        fast_paths: whether the lab's own forms of modules may stand in for the model's; likewise.

    Yields:
        A `StepRecord` a step (the method's own records before it), `CheckpointRecord`s, `MessageRecord`s. What happens
        at step k is yielded before the checkpoint of step k is written: who kept the record of that one has them all.

    Raises:
        CancelledError: `should_stop` said so; a checkpoint was written first.
        NonFiniteLossError: loss or gradient norm is not finite; that step changed nothing, checkpoints are kept.
        OutOfMemoryError: the device is full.
        DataError: nothing to learn in an example, or no example.
        TrainingError: nothing to train; a checkpoint is unreadable, foreign, or cannot be written.
    """
    require_labels(encoded)
    require_labels(probe)
    stream = BatchStream(encoded, config.batch_size, derive_seed(seed, "order"), accumulation=config.accumulation)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise TrainingError("No parameter of the model requires a gradient.", remedy="Add an adapter and train it.")
    device = next(iter(trainable.values())).device
    optimiser = torch.optim.AdamW(
        trainable.values(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),  # 0.7 ms for 112 small tensors on a CPU; foreach takes 3.5, a loop 9
    )
    generator = torch.Generator().manual_seed(derive_seed(seed, "method"))
    reported: list[Event] = []
    mode = choose_mode(
        activation_memory,
        measure_shape(
            model,
            batch_size=config.batch_size,
            length=max(len(example.input_ids) for example in encoded),
            num_labelled=config.batch_size * max(example.num_labelled for example in encoded),
        ),
        measure_room(model, device),
    )
    if activation_memory == "auto" and mode != "speed":
        yield MessageRecord(level="info", text=f"Activation memory: {mode}, the fastest that fits {device}.")
    method.setup(
        model,
        MethodContext(
            generator=generator,
            sample_harmful=_sampler(probe, pad_id, device, ranks) if probe else None,
            reduce_sum=ranks.reduce_sum,
            emit=reported.append,
            rank=ranks.index,
            activation_memory=mode,
            fast_paths=fast_paths,
        ),
    )
    first = [_excerpt(example, length) for example, length in zip(encoded, EXCERPTS, strict=False)]
    yield from check_fast_paths(method.passes, model, collate(first, pad_id).to(device).prepare())
    start, elapsed_s = 0, 0.0
    fingerprint = _fingerprint(method, [*encoded, *probe], config, seed, trainable)
    ranks.require_same(fingerprint, "settings, data and adapters")
    if resume and (checkpoint := _find_checkpoint(checkpoint_dir, fingerprint, ranks)):
        start, elapsed_s = checkpoint.step, checkpoint.elapsed_s
        _restore(checkpoint, trainable, optimiser, method, generator)
        for sentence in checkpoint.skipped:
            yield MessageRecord(level="warning", text=sentence, remedy=f"Resumed from step {start} instead.")
    saved = start if start else None

    def save(step: int) -> CheckpointRecord | None:
        nonlocal saved
        if checkpoint_dir is None or saved == step or not ranks.leads:
            return None
        path = save_checkpoint(
            checkpoint_dir,
            step=step,
            elapsed_s=elapsed_s,
            fingerprint=fingerprint,
            tensors=_snapshot(trainable, optimiser, method, generator),
        )
        saved = step
        return CheckpointRecord(step=step, path=path.name)

    model.train()
    for step in range(start, config.steps):
        word = ranks.agree(Word.STOP if should_stop() else Word.GO_ON)
        if word != Word.GO_ON:
            if word == Word.STOP and (record := save(step)):
                yield record
            raise CancelledError(f"Stopped after step {step} of {config.steps}.", remedy="Resume to go on from there.")
        began = time.perf_counter()
        learning_rate = learning_rate_at(step, config)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate
        try:
            micro_batches = stream.micro_batches(step)
            num_tokens = sum(example.num_labelled for batch in micro_batches for example in batch)
            metrics: dict[str, Tensor] = {}
            optimiser.zero_grad(set_to_none=True)
            for examples in micro_batches:
                batch = collate(examples, pad_id, total_labelled=num_tokens, ranks=ranks).to(device)
                for name, value in method.training_step(model, batch, step).items():
                    value = value * batch.weight
                    metrics[name] = metrics[name] + value if name in metrics else value
            ranks.sum_gradients(list(trainable.values()))
            gradients = [parameter.grad for parameter in trainable.values() if parameter.grad is not None]
            if not gradients:
                raise TrainingError(f"Step {step + 1} gave no parameter a gradient.", remedy="Report this method.")
            grad_norm = torch.nn.utils.get_total_norm(gradients)
            names = list(metrics)
            means = ranks.reduce_sum(torch.stack([metrics[name].float() for name in names]))
            numbers = torch.cat([grad_norm.float()[None], means]).tolist()
            values = dict(zip(names, numbers[1:], strict=True))
            if not (math.isfinite(numbers[0]) and math.isfinite(values["loss"])):
                raise NonFiniteLossError(
                    f"Step {step + 1}: the loss is {values['loss']}, the gradient norm {numbers[0]}.",
                    step=step + 1,
                    remedy="Lower the learning rate or the perturbation, then start again; "
                    "resuming goes back to the last checkpoint.",
                )
            if numbers[0] > config.max_grad_norm:
                torch.nn.utils.clip_grads_with_norm_(trainable.values(), config.max_grad_norm, grad_norm)
            optimiser.step()
            del gradients  # else they would be held through the next step's passes
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"Step {step + 1}: {device} has no memory left for batches of {config.batch_size}.",
                remedy="Lower batch_size (and raise accumulation by as much), lower max_length, or set "
                "activation_memory to lowest.",
            ) from error
        elapsed_s += time.perf_counter() - began
        yield from reported
        reported.clear()
        yield StepRecord(
            step=step + 1,
            num_steps=config.steps,
            loss=values.pop("loss"),
            learning_rate=learning_rate,
            grad_norm=numbers[0],
            elapsed_s=elapsed_s,
            num_tokens=num_tokens,
            metrics=values,
        )
        due = config.checkpoint_every and ((step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps)
        if due and (record := save(step + 1)):
            yield record
    optimiser.zero_grad(set_to_none=True)


def _excerpt(example: Encoded, length: int) -> Encoded:
    """At most `length` tokens around the first labelled one, a third of them from there on."""
    first = next(index for index, label in enumerate(example.labels) if index and label != MASKED)
    part = slice(max(0, first - length + length // 3), first + length // 3)
    return replace(example, input_ids=example.input_ids[part], labels=example.labels[part])


def _sampler(
    probe: Sequence[Encoded], pad_id: int, device: torch.device, ranks: Ranks
) -> Callable[[int, torch.Generator], Batch]:
    """Draw harmful batches from `probe` without replacement; all of it if more are asked for than there are."""

    def sample(count: int, generator: torch.Generator) -> Batch:
        order = torch.randperm(len(probe), generator=generator)[:count].tolist()
        return collate([probe[index] for index in order], pad_id, ranks=ranks).to(device)

    return sample


def _find_checkpoint(folder: Path | None, fingerprint: str, ranks: Ranks) -> Checkpoint | None:
    """What to resume from: the leader reads it, the others' machines may not have it."""
    found = load_checkpoint(folder, fingerprint) if folder is not None and ranks.leads else None
    note, tensors = ranks.share_tensors(
        found and {"step": found.step, "elapsed_s": found.elapsed_s}, found.tensors if found else {}
    )
    return found if ranks.leads or note is None else Checkpoint(**note, tensors=tensors, skipped=())


def _fingerprint(
    method: Method,
    encoded: Sequence[Encoded],
    config: OptimisationConfig,
    seed: int,
    trainable: dict[str, nn.Parameter],
) -> str:
    """Hash of everything that must be equal for a checkpoint to be taken up; how often they are written need not."""
    digest = hashlib.sha256()
    digest.update(config.model_dump_json(exclude={"checkpoint_every"}).encode())
    digest.update(f"{method.config.model_dump_json()}/{seed}".encode())
    for name, parameter in trainable.items():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
    for example in encoded:
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
    """CUDA and MPS have a class for it; the CPU allocator has only its words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
