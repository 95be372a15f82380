"""How bytes move between local files and a store: the uploader and its queue, hashing, progress, pull."""
