"""New scans through a trained model: safe loading, ensemble prediction, measurements, a report."""
