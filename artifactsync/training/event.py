"""The moments of training at which callbacks are called."""

from __future__ import annotations

import enum


class Event(str, enum.Enum):
    """A moment of training. The value is the name of the callback's method. Names and order are Composer's.

    ::

        init
        after_load
        fit_start
        for each epoch:
            epoch_start
            for each batch:
                before_dataloader, after_dataloader
                batch_start
                for each microbatch:
                    before_forward, after_forward
                    before_loss, after_loss
                    before_backward, after_backward
                batch_end           # the timestamp has moved
                eval_start … eval_end, if eval_interval says so
                batch_checkpoint
            epoch_end               # the timestamp has moved
            eval_start … eval_end, if eval_interval says so
            epoch_checkpoint
        fit_end
        close                       # the trainer is done with this callback
    """

    INIT = "init"
    AFTER_LOAD = "after_load"
    FIT_START = "fit_start"
    EPOCH_START = "epoch_start"
    BEFORE_DATALOADER = "before_dataloader"
    AFTER_DATALOADER = "after_dataloader"
    BATCH_START = "batch_start"
    BEFORE_FORWARD = "before_forward"
    AFTER_FORWARD = "after_forward"
    BEFORE_LOSS = "before_loss"
    AFTER_LOSS = "after_loss"
    BEFORE_BACKWARD = "before_backward"
    AFTER_BACKWARD = "after_backward"
    BATCH_END = "batch_end"
    BATCH_CHECKPOINT = "batch_checkpoint"
    EPOCH_END = "epoch_end"
    EPOCH_CHECKPOINT = "epoch_checkpoint"
    EVAL_START = "eval_start"
    EVAL_BATCH_END = "eval_batch_end"
    EVAL_END = "eval_end"
    FIT_END = "fit_end"
