"""The low-label benchmark: real trainings that differ in one thing each, on the same labelled draws."""
