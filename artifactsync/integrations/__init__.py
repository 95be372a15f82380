"""Where users already are: one line in the framework they use.

Each module needs its framework alone, and only when it is imported: ``lightning``, ``transformers``, ``accelerate``,
``composer``, ``distributed`` (``torch.distributed.checkpoint``), ``filesystem`` (fsspec's ``artifactsync://``, which
needs no torch). Owns: the words of the frameworks. Does not own: saving, publication or resuming (``run``,
``checkpoint``).
"""
