"""Imaging planes in the patient: geometry, where preprocessing has put a slice, and the file planes.json."""
