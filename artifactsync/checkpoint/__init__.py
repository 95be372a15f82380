"""Torch begins here: snapshot, write, load and resume training state."""
