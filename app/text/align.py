"""Align; and starting, stopping and resuming on any screen."""

DEFENCES = "Defences, side by side"
DEFENCES_INFO = (
    "Choose some, or write one: its alignment method, and methods of other stages joined by +, as in "
    "tvaccine+identity. To compare settings, write them behind a method, as in tvaccine rho=3; all others are as below."
)
START_ALIGN = "Start alignment"
STOP = "Stop"
RESUME = "Resume"
ADVANCED = "Advanced"
NEW_RUN_NOTE = "Start makes a new run; the present run is kept under Runs."
ALIGN_EMPTY = "Nothing is aligned yet. Press Start: the first numbers come within seconds."
STARTED_ALIGN = "Alignment queued. You may close the page: the work goes on."
ALREADY_ALIGNING = (
    "The same run, {name}, is already queued or running, and is shown now. To make another run, change a setting."
)
STOPPING = "Stopping: each job ends within a step and keeps its checkpoint. A job that hangs is ended after a minute."
NOTHING_TO_STOP = "Nothing is running."
NOTHING_TO_RESUME = "Nothing to resume: no job of this step was stopped or interrupted."
RESUMED = "Resumed from the last checkpoint."
DOMINATES = (
    "Layer {layer} holds {share:.0f} % of the probability: its gradient norm is {ratio:.0f} times the median of the "
    "others, so it is drawn nearly always. This is a property of the model. The other choices of layers, under "
    "Advanced, show T-Vaccine without it."
)
