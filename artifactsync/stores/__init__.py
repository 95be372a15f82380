"""Where bytes live: one ``Store`` protocol, its implementations, and adapters that are Stores themselves.

``open_store(url, storage_options)`` is the one entry: it picks the implementation, reads credentials as the
cloud's own tools do, and stacks the adapters.
"""
