"""One file per screen: its components, then its handlers, then their wiring."""
