"""Verdicts and advice, worked by hand."""

from tvaccine_core.plan.advice import GIB, advise, judge_fit, published_gb
from tvaccine_core.plan.records import PARTS, MemoryPlan, PhasePeak


def plan(step_gib: float, **changes: object) -> MemoryPlan:
    fixed = 4 * GIB
    parts = {**dict.fromkeys(PARTS, 0), "weights": fixed, "activations": int(step_gib * GIB) - fixed}
    load = {**dict.fromkeys(PARTS, 0), "weights": fixed}
    data = {
        "model": "llama-2-7b",
        "source": "built-in",
        "method": "tvaccine",
        "quantization": "nf4",
        "dtype": "bfloat16",
        "device": "cuda",
        "activation_memory": "lowest",
        "batch_size": 10,
        "length": 200,
        "labelled": 200,
        "probe_batch_size": 16,
        "evaluation_batch_size": 10,
        "new_tokens": 24,
        "num_layers": 32,
        "num_parameters": 6_738_415_616,
        "exact": False,
        "phases": (
            PhasePeak(phase="load", peak_bytes=fixed, parts=load),
            PhasePeak(phase="step", peak_bytes=int(step_gib * GIB), parts=parts),
        ),
        "assumptions": (),
    }
    return MemoryPlan.model_validate({**data, **changes})


def test_a_plan_fits_with_context_and_gaps_or_only_just() -> None:
    assert judge_fit(10 * GIB, 12) == "fits"
    assert judge_fit(int(11.5 * GIB), 12) == "tight"  # 11.5 * 1.03 + 0.6 > 12
    assert judge_fit(13 * GIB, 12) == "does not fit"


def test_what_fits_needs_no_advice() -> None:
    assert advise(plan(10), 12) == ()


def test_the_batch_that_fits_is_computed_from_what_grows_with_it() -> None:
    # (12 - 0.6) / 1.03 - 4 = 7.07 GiB for rows of 1.2 GiB each
    assert advise(plan(16), 12) == ("batch_size (raise accumulation by as much) 5 instead of 10",)


def test_quantising_and_keeping_less_come_first() -> None:
    sentences = advise(plan(30, quantization="none", activation_memory="speed"), 12)
    assert sentences[0].startswith("quantization nf4 saves about 3 GB")
    assert "activation_memory lowest" in sentences[1]


def test_where_nothing_helps_a_larger_card_does() -> None:
    assert advise(plan(16), 4) == ("a smaller model, or a larger GPU",)


def test_published_numbers_stand_beside_the_same_setting_only() -> None:
    assert published_gb(plan(20, quantization="none")) == 23
    assert published_gb(plan(20)) is None
    assert published_gb(plan(20, quantization="none", num_parameters=7)) is None
    assert published_gb(plan(20, quantization="none", method="sft")) is None
