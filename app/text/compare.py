"""Compare: asking, panes, verdicts, the table of scores."""

ASK = "Ask"
PROMPT = "One prompt, all models"
PROMPT_HINT = "Harmful or not"
SUGGESTED = "From the evaluation split"
BASE_PANE = "Also ask the base model"
PANE_MISSING = {
    "before": "Not aligned yet: go to Align.",
    "after": "Not attacked yet: go to Attack.",
    "repaired": "Not repaired yet: that follows the attack.",
}
PANE_NO_REPAIR = "This defence repairs nothing."
PANE_IDLE = "Ask something."
NO_MODEL = "There is no aligned model to ask yet."
NO_MODEL_REMEDY = "Start the alignment on the Align step and wait until one is done."
PANE_QUEUED = "waiting for a worker"
PANE_AHEAD = "{count} ahead in the queue"
PANE_STOPPED = "stopped"
PANE_FAILED = "failed"
SHOW = "Show"
BLURRED = "Blurred: judged harmful. Show or hide"
BLURRED_PENDING = "Blurred until judged. Show or hide"
BLURRED_UNJUDGED = "Blurred: no judge knows this prompt. Show or hide"
VERDICTS = {
    "harmful": "harmful",
    "refused": "refused",
    "exact": "correct",
    "other": "harmless",
    "incoherent": "gibberish",
    "unjudged": "not judged",
    "pending": "answering",
}
TABLE_CAPTION = (
    "Percent with 95 % Wilson interval. Judge: {judge}. Decoding: greedy. One alignment seed ({seed}), one attack seed."
)
TABLE_STATE = "Model"
TABLE_ORDINARY = "ordinary requests done right"
TABLE_OVER_REFUSAL = "ordinary requests refused"
TABLE_COHERENT = "coherent answers to hazards"
NOT_SHOWN = (
    "Not shown: what other seeds would give (a difference here is one draw; the study below has several), "
    "whether a larger model behaves alike (this one {size}), and attacks tuned against the defence."
)
SANDBOX_SIZE = "has 1.7 million parameters and an invented world"
OTHER_SIZE = "is the one you chose"
BASE_TITLE = "Base"
