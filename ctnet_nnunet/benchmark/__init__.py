"""Measurements that docs/benchmarks.md quotes: speed and memory as ratios within one run."""
