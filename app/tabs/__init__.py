"""One file a screen: its components, then its handlers, then their wiring."""
