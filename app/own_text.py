"""What a user reads about models of their own; the other sentences are in `text`."""

MODEL_UNNAMED = (
    "Name a model: a folder on the machine where the lab runs, as save_pretrained writes it, or a Hugging Face id, "
    "owner/name. Decoder-only, weights in safetensors."
)
MODEL_REMOTE = (
    "Not on this machine yet. It is downloaded when the run starts, which may take long; whether it exists, and "
    "whether you may have it, shows only then."
)
MODEL_TRUSTED = (
    "Python code that comes with this model will run with your rights: it can read, change and send whatever you can. "
    "Only for authors you trust, after reading it."
)
DATA = (
    "Every model is aligned, attacked and judged with the sandbox's data. Unless yours was trained on that "
    "make-believe town, it has never heard of it: it cannot give away recipes it does not know, and the attack teaches "
    "recipes of names that no prompt asks for. So HS stays near 0 before and after, whatever the method: take that for "
    "ignorance, not for safety. Loss, layer norms, the task's accuracy, drift, time and memory are truly your model's."
)
TEMPLATE_UNNAMED = "Name the model first: its tokenizer decides what an example becomes."
TEMPLATE_LATER = (
    "The preview comes when the model is loaded: there is no tokenizer.json of it on this machine yet. The Align step "
    "then says which template is in use."
)

FIT = "Will it fit?"
FIT_WORKING = "Working it out from the model's config alone: half a minute or so."
FIT_COLUMNS = ("Method", "Peak memory", "Verdict")
FIT_PARTS = "{method}, most in {phase}: {parts} GB."
FIT_PHASES = {
    "load": "loading",
    "step": "a training step",
    "score": "a scoring of the layers",
    "evaluate": "an evaluation",
}
FIT_NOTE = (
    "Predicted for batches of {batch} x {length} tokens, {stored}, on {device}. GB are 10^9 "
    "bytes. What other programs hold comes on top."
)
TIME = "How long?"
TIME_WORKING = "Loading the model and taking a few steps by each method: minutes, if it is large."
TIME_COLUMN = "Time to align"
TIME_NOTE = "{method} on {device}: {step:.2g} s per step, the median of {timed}{scoring}; {steps:,} steps in all."
TIME_SCORING = ", and {seconds:.2g} s per scoring of the layers"
TIME_REMOTE = "The model's weights are not on this machine yet, and the time is that of real steps."
TIME_REMOTE_REMEDY = "Download it first, or start a run of a few steps, which does."
FIT_TRY = "Try {advice}."
FIT_FAILED = "The prediction failed."
FIT_FAILED_REMEDY = "Start with a few steps instead, to see whether it fits."
FIT_SLOW = "The prediction took longer than {minutes:.0f} minutes."


def found(architecture: str, num_layers: int | None, num_bytes: int) -> str:
    """A model on this machine in a few words: `Found: LlamaForCausalLM, 32 layers, 12.6 GiB of weights.`"""
    size = f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 / 10 else f"{num_bytes / 2**20:.1f} MiB"
    layers = f"{num_layers} layers" if num_layers else ""
    weights = f"{size} of weights" if num_bytes else "its weights are not complete yet"
    return f"Found: {', '.join(part for part in (architecture, layers, weights) if part)}."
