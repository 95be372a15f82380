"""What the operating system says, in our words: the one place where an errno becomes an error of ours."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    DestinationError,
    DiskFullError,
    ObjectNotFoundError,
    PermissionDeniedError,
    StoreError,
    UnsafeKeyError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_SHAPE = frozenset({errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENOTEMPTY})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@contextlib.contextmanager
def system_errors(root: Path, key: str) -> Iterator[None]:
    """Within: every ``OSError`` at ``key`` below ``root`` leaves as an error of ours."""
    try:
        yield
    except ArtifactSyncError:
        raise
    except OSError as error:
        raise _translated(root, key, error) from error


def link_error(root: Path, key: str, error: OSError) -> OSError | ArtifactSyncError:
    """What a failed ``link(2)`` of a finished file to its name means."""
    target = root / key
    if error.errno == errno.EEXIST and not target.is_dir():
        return AlreadyExistsError(f"{_url(root, key)} exists already", url=_url(root, key))
    if error.errno in _NO_LINKS:
        return StoreError(
            f"the file system of {root} refused a hard link ({error.strerror}), so create-only writes fail",
            hint="use a folder on a file system with hard links (ext4, xfs, btrfs, NFS), or a bucket",
            url=_url(root, key),
        )
    return error


def _url(root: Path, key: str) -> str:
    return f"file://{root}/{key}" if key else f"file://{root}"


def _translated(root: Path, key: str, error: OSError) -> ArtifactSyncError:
    url = _url(root, key)
    why = error.strerror or str(error)
    if error.errno in _SHAPE:
        return _misshapen(root, key, why)
    if error.errno in _FULL:
        return DiskFullError(f"no space left for {url} ({why})", hint="free some space, then try again", url=url)
    if error.errno in _FORBIDDEN:
        hint = f"check the owner and the mode of {root} and of what is below it"
        return PermissionDeniedError(f"{url}: {why}", hint=hint, url=url)
    if error.errno == errno.ENOENT:
        return ObjectNotFoundError(f"{url} does not exist", url=url)
    if error.errno == errno.ENAMETOOLONG:
        return DestinationError(f"{url}: {why}", hint="use shorter names", url=url)
    return StoreError(f"{url}: {why}", url=url)


def _misshapen(root: Path, key: str, why: str) -> ArtifactSyncError:
    """A file where a folder must be, a folder where a file must be, or a link that is not followed."""
    url = _url(root, key)
    for above in (root, *root.parents):
        if above.exists() and not above.is_dir():
            hint = "choose a folder, or a path where one can be made"
            return DestinationError(f"{above} is a file, not a folder", hint=hint, url=url)
    place = root
    for part in key.split("/"):
        place /= part
        if place.is_symlink():
            return UnsafeKeyError(
                f"{place} is a symbolic link, which is not followed",
                hint="replace the link by a real file or folder, or use its target as the remote",
                url=url,
            )
    hint = "a file and a folder cannot have the same name: rename one of them"
    return DestinationError(f"{url}: {why}", hint=hint, url=url)
