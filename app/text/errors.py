"""What a user reads when something did not work; the engine's errors bring their own words."""

ERROR_TITLE = "That did not work"
UNKNOWN_ERROR = "Something went wrong that the lab did not foresee (note {ticket})."
UNKNOWN_REMEDY = (
    "The details are in the server's log under that note. Reload the page; jobs that run are not disturbed."
)
RUN_GONE = "This run does not exist here (any more)."
RUN_GONE_REMEDY = "Choose another under Runs, or start a new one."
NO_RUN_OPEN = "No run is open."
NO_RUN_REMEDY = "Start one on the Align step, or open one under Runs."
NO_ANSWER = "No worker answered in time."
NO_WORKER_REMEDY = "Start one: python -m tvaccine_core worker --data-dir {home}"
