"""The training core: Trainer, State, Time, Event, Callback and the callbacks."""
