"""Choose, memory and time: will it fit, how long does it take."""

FIT = "Will it fit?"
FIT_WORKING = "Computing it from the model's config alone: about half a minute."
FIT_COLUMNS = ("Method", "Peak memory", "Verdict")
FIT_PARTS = "{method}, most in {phase}: {parts} GB."
FIT_LITTLE = "less than 0.01"
FIT_PHASES = {
    "load": "loading",
    "step": "a training step",
    "score": "a scoring of the layers",
    "evaluate": "an evaluation",
}
FIT_NOTE = (
    "Predicted for batches of {batch} x {length} tokens, {stored}, on {device}. GB are 10^9 "
    "bytes. The memory of other programs is extra."
)
TIME = "How long?"
TIME_WORKING = "Loading the model and taking a few steps with each method: minutes for a large model."
TIME_COLUMN = "Time to align"
TIME_NOTE = "{method} on {device}: {step:.2g} s per step, the median of {timed}{scoring}; {steps:,} steps in all."
TIME_SCORING = ", and {seconds:.2g} s per scoring of the layers"
TIME_REMOTE = "The model's weights are not on this machine yet, and the time is measured with real steps."
TIME_REMOTE_REMEDY = "Download the model first, or start a run of a few steps, which downloads it."
FIT_TRY = "Try {advice}."
FIT_FAILED = "The prediction failed."
FIT_FAILED_REMEDY = "Start with a few steps instead, to see whether it fits."
FIT_SLOW = "The prediction took longer than {minutes:.0f} minutes."
