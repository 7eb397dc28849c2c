"""The ``ctnet`` command: each file parses, calls and prints; no logic lives here."""
