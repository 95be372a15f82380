"""Figures that the documentation quotes: ``python -m benchmarks [NAME …]`` measures them on this machine."""
