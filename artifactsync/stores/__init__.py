"""Where bytes live: one ``Store`` protocol, its implementations, and adapters that are Stores themselves.

``open_store(url, storage_options)`` is the one entry: it picks the implementation, reads credentials as the
cloud's own tools do, and stacks the adapters. Cloud libraries load when a store that needs them is opened.
"""

from artifactsync.stores.create_once import create_once
from artifactsync.stores.limit import LimitStore
from artifactsync.stores.open import open_store
from artifactsync.stores.prefix import PrefixStore
from artifactsync.stores.probe import probe
from artifactsync.stores.protocol import Body, BytesBody, Capabilities, ObjectInfo, Store
from artifactsync.stores.retry import RetryPolicy, RetryStore

__all__ = [
    "Body",
    "BytesBody",
    "Capabilities",
    "LimitStore",
    "ObjectInfo",
    "PrefixStore",
    "RetryPolicy",
    "RetryStore",
    "Store",
    "create_once",
    "open_store",
    "probe",
]
