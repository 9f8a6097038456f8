"""Choose, about models of a user's own."""

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
OWN_DATA = (
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


def model_found(architecture: str, num_layers: int | None, num_bytes: int) -> str:
    """A model on this machine in a few words: `Found: LlamaForCausalLM, 32 layers, 12.6 GiB of weights.`"""
    size = f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 / 10 else f"{num_bytes / 2**20:.1f} MiB"
    layers = f"{num_layers} layers" if num_layers else ""
    weights = f"{size} of weights" if num_bytes else "its weights are not complete yet"
    return f"Found: {', '.join(part for part in (architecture, layers, weights) if part)}."
