"""The parts of the Compare screen, which `app.tabs.compare` places."""
