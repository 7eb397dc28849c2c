"""Evaluation of predictions from files: metrics, statistics over cases, pictures, and the report."""
