"""Which keys every store of ours takes as they are.

Owns: the refusal of keys that some store would fold, cut or resolve (``a//b``, ``a/../b``, ``/a``, ``a/``): a key is
stored exactly or refused, never silently changed. Does not own: what an artifact's path may be (``naming.layout``).
"""

from __future__ import annotations

from artifactsync.errors import UnsafeKeyError


def split_key(key: str, *, ours: str = "") -> list[str]:
    """Split a key into its parts.

    Args:
        key: The key.
        ours: The beginning of names that a store keeps for itself; refused. Empty: none.

    Raises:
        UnsafeKeyError: the key would be changed on its way, or is one of ours.
    """
    parts = key.split("/")
    reason = why_refused(key)
    if not reason and ours and any(part.startswith(ours) for part in parts):
        reason = f"has a part that begins with {ours}, the name of unfinished files"
    if reason:
        raise UnsafeKeyError(f"the key {key!r} {reason}", hint="use keys such as run/checkpoints/model.pt")
    return parts


def why_refused(key: str) -> str:
    """Say why no store takes the key; nothing if it is fine."""
    parts = key.split("/")
    if "" in parts:
        return "is empty, or has an empty part"
    if "." in parts or ".." in parts:
        return "has a '.' or '..' part"
    if "\0" in key:
        return "has a NUL character"
    return ""
