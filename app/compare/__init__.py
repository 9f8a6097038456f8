"""The parts of the Compare screen; `app.tabs.compare` places them."""
