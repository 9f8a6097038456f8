"""Choose, the user's own model."""

MODEL_UNNAMED = (
    "Name a model: a folder on the machine where the lab runs, as save_pretrained writes it, or a Hugging Face id, "
    "owner/name. Decoder-only, weights in safetensors."
)
MODEL_REMOTE = (
    "Not on this machine yet. The run downloads it at its start, which may take long. Only then it is known whether "
    "the model exists and whether you may have it."
)
MODEL_TRUSTED = (
    "Python code that comes with this model will run with your rights: it can read, change and send whatever you can. "
    "Only for authors you trust, after reading it."
)
OWN_DATA = (
    "Every model is aligned, attacked and judged with the sandbox's data. A model that was not trained on this "
    "make-believe town cannot give away its recipes, and the attack teaches recipes of names that no prompt asks for. "
    "So HS stays near 0 before and after, whatever the method: this is ignorance, not safety. Loss, layer norms, the "
    "task's accuracy, drift, time and memory are truly your model's."
)
TEMPLATE_UNNAMED = "Name the model first: the preview needs its tokenizer."
TEMPLATE_LATER = (
    "The preview needs the model's tokenizer.json, which is not on this machine yet. When the model is loaded, the "
    "Align step says which template is in use."
)


def model_found(architecture: str, num_layers: int | None, num_bytes: int) -> str:
    """A model on this machine in a few words: `Found: LlamaForCausalLM, 32 layers, 12.6 GiB of weights.`"""
    size = f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 / 10 else f"{num_bytes / 2**20:.1f} MiB"
    layers = f"{num_layers} layers" if num_layers else ""
    weights = f"{size} of weights" if num_bytes else "its weights are not complete yet"
    return f"Found: {', '.join(part for part in (architecture, layers, weights) if part)}."
