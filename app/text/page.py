"""Texts of several screens: title, steps and their purpose, the rail, the state of a job."""

TITLE = "T-Vaccine Lab"

STEPS = {1: "Choose", 2: "Align", 3: "Attack", 4: "Compare", 5: "Runs", 6: "Sweep", 7: "Findings"}

WHY = {
    1: "A provider teaches a model to refuse. A user then fine-tunes it on their own data, and a few samples are "
    "harmful. Choose the world, or the model, in which you want to watch this.",
    2: "The same data, the same steps, different ways of training. SFT is the undefended twin. T-Vaccine shifts the "
    "hidden states of the layers that harmful data pull at most strongly, and learns to refuse despite the shift.",
    3: "Now you are the user. Upload n samples, a share p of them harmful, and fine-tune every aligned model on the "
    "same mixture. A good defence keeps the harmful score low while the task is still learned.",
    4: "Numbers say how often, answers say what. Ask all models the same question, before and after the attack. Prompt "
    "and decoding are the same, so a difference comes from the models.",
    5: "Everything you start is kept here until you delete it. Reopen a run, compare two, download its data, or repeat "
    "it from the command line.",
    6: "One run uses one random seed, so its result may be chance. A sweep makes one experiment for every combination "
    "of some settings, over several seeds, and puts all of them in one table. It works while you look at other things.",
    7: "The results of sweeps that ship with the lab. You can repeat each of them: choose its file under Sweep.",
}

STATE_WORDS = {
    "todo": "not started",
    "queued": "waiting",
    "running": "running",
    "done": "done",
    "failed": "failed",
    "cancelled": "stopped",
    "interrupted": "interrupted",
    "ready": "ready",
}
RUN_WORDS = {**STATE_WORDS, "new": "new"}
JOB_STEPS = "{done:,} of {total:,} steps"
JOB_STARTING = "starting"
JOB_LEFT = "{time} left"
JOB_MEASURING = "{steps}, measuring"
JOB_STOPPING = "stopping"
JOB_DONE = "done in {time}"
JOB_ENDED = "{state} at {steps}"
RECORDED_RUN = "A recorded run."
RECORDED_RUN_NOTE = (
    "You see the results of a finished run that ships with the lab. Under Compare, take a suggested prompt to see the "
    "recorded answers."
)
RUN_LIVE = "Run it live"
MAKE_IT_YOURS = "Change the settings"
LIVE_NAME = "Live: {name}"
LIVE_STARTED = (
    "The same alignment and attack now run on this machine, and the screens show the new run. The recorded run is kept "
    "under Runs."
)
NO_RUN = "no run open"
COPY_LINK = "Copy link"
LINK_COPIED = "Link copied"
THEME = "Theme"
THEME_HINT = "Switch between light and dark"
REVEAL = "Unblur"
REVEAL_HINT = "Show text that was judged harmful"
