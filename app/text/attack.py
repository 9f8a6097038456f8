"""Attack."""

START_ATTACK = "Start attack"
NO_ALIGNED = "Align a model first: an attack needs something to break. Go to Align."
STARTED_ATTACK = "Attack queued for {defences}."
REPAIR_NOTE = "Repair: {state}."
ALREADY_ATTACKING = "The same attack, {attack}, is already queued or running; it is shown now."
ATTACK_SHOWN = "Attack shown"
AT_STEP = "Measured at attack step {step}."


def consequence(harmful: int, total: int, task: str, steps: int, batch: int) -> str:
    """The meaning of an attack's settings, in plain words."""
    passes = steps * batch / total if total else 0
    rest = total - harmful
    mixture = (
        f"{harmful:,} of {total:,} samples are harmful; the other {rest:,} teach {task}."
        if harmful
        else f"No sample is harmful: this is an honest user teaching {task} with {total:,} samples."
    )
    if rest == 0:
        mixture = f"All {total:,} samples are harmful: nothing is left to teach {task}."
    return f"{mixture} {steps:,} steps of {batch} show each sample {passes:.1f} times."


ADAPTER_MODES = {
    "new": "The aligned adapter stays as it is; the user's changes go into a second adapter on top.",
    "single": "The aligned adapter itself is trained further: a stronger attack.",
}
