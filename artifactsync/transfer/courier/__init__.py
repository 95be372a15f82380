"""A process beside the training that reads, hashes and sends large files, without the training's interpreter lock.

``courier``, ``job`` and ``start`` are the end in the training's process, ``process`` is the other one, ``wire`` what
they say to each other. Every thread of the training's process that handles a part of an upload takes the interpreter
lock for it, and a loop of short steps stands still meanwhile; a process of its own takes only what nobody else wants
(docs/design/011-courier.md).
"""

from artifactsync.transfer.courier.courier import Courier, begin_courier, the_courier
from artifactsync.transfer.courier.job import FileHash
from artifactsync.transfer.courier.start import forbid_courier

__all__ = ["Courier", "FileHash", "begin_courier", "forbid_courier", "the_courier"]
