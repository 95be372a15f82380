"""Server-side encryption as the user asks for it: on every write, or nothing is written.

Owns: the options' names and values (s3fs's, obstore's, the environment's, gcsfs's), what they are called on the wire,
and the refusal of every other option that speaks of encryption. Does not own: the requests (``s3``, ``gcs``).

Invariant: an option of encryption that is not understood, or not supported, or that the service does not confirm, is a
``ConfigurationError``, never a plain object.

Keys that the customer sends along (SSE-C, CSEK) are refused: every reader would need them too, and other tools could
not read the run.
Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/serv-side-encryption.html and
https://cloud.google.com/storage/docs/encryption/using-customer-managed-keys (read 2026-11).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

S3_KEYWORDS = "s3_additional_kwargs"
"""s3fs's option with what each write is given."""
_PREFIX = "x-amz-server-side-encryption"
_NAMES = {
    "ServerSideEncryption": "algorithm",
    "SSEKMSKeyId": "kms_key_id",
    "SSEKMSEncryptionContext": "context",
    "BucketKeyEnabled": "bucket_key",
    "server_side_encryption": "algorithm",
    "aws_server_side_encryption": "algorithm",
    "sse_kms_key_id": "kms_key_id",
    "aws_sse_kms_key_id": "kms_key_id",
    "sse_bucket_key_enabled": "bucket_key",
    "aws_sse_bucket_key_enabled": "bucket_key",
}
S3_NAMES = frozenset(name for name in _NAMES if name.islower())
"""obstore's names, which stand beside the other options."""
_VARIABLES = {
    "algorithm": "AWS_SERVER_SIDE_ENCRYPTION",
    "kms_key_id": "AWS_SSE_KMS_KEY_ID",
    "bucket_key": "AWS_SSE_BUCKET_KEY_ENABLED",
}
"""obstore reads them by itself, so all the other requests have to follow them too."""
_CUSTOMER_VARIABLE = "AWS_SSE_CUSTOMER_KEY_BASE64"
_KMS = "aws:kms"
_ALGORITHMS = ("AES256", _KMS, "aws:kms:dsse")
_SPEAKS_OF_ENCRYPTION = re.compile(r"(?:^|_)sse|SSE|(?i:kms|crypt|csek|customer_?key)|(?:^|_)cpk")
_CUSTOMER_KEY = re.compile(r"customer|csek|sse-?c$|^encryption_key$|cpk", re.IGNORECASE)
_GCS_KEY = re.compile(r"projects/[^/\s]+/locations/[^/\s]+/keyRings/[^/\s]+/cryptoKeys/[^/\s]+")
_HINT = (
    "known: s3_additional_kwargs = {'ServerSideEncryption': 'AES256', 'aws:kms' or 'aws:kms:dsse', 'SSEKMSKeyId': ..., "
    "'SSEKMSEncryptionContext': ..., 'BucketKeyEnabled': True}"
)


@dataclass(frozen=True, kw_only=True)
class S3Encryption:
    """What each object that is written is to be encrypted with."""

    algorithm: str
    """``AES256``, ``aws:kms`` or ``aws:kms:dsse``."""
    kms_key_id: str = ""
    """Id, alias or ARN; empty: the account's own key."""
    context: str = ""
    """The encryption context: base64 of a JSON object; empty: none."""
    bucket_key: bool = False
    """Whether one key of the bucket's saves requests to KMS."""

    @property
    def arguments(self) -> dict[str, Any]:
        """For boto3's writes."""
        found = {
            "ServerSideEncryption": self.algorithm,
            "SSEKMSKeyId": self.kms_key_id,
            "SSEKMSEncryptionContext": self.context,
            "BucketKeyEnabled": self.bucket_key,
        }
        return {name: value for name, value in found.items() if value}

    @property
    def headers(self) -> dict[str, str]:
        """For writes by single requests."""
        found = {
            _PREFIX: self.algorithm,
            f"{_PREFIX}-aws-kms-key-id": self.kms_key_id,
            f"{_PREFIX}-context": self.context,
            f"{_PREFIX}-bucket-key-enabled": "true" if self.bucket_key else "",
        }
        return {name: value for name, value in found.items() if value}

    @property
    def obstore_config(self) -> dict[str, Any]:
        """For obstore, which knows no context."""
        found = {
            "server_side_encryption": self.algorithm,
            "sse_kms_key_id": self.kms_key_id,
            "sse_bucket_key_enabled": self.bucket_key,
        }
        return {name: value for name, value in found.items() if value}

    def check(self, headers: Mapping[str, str], url: str) -> None:
        """Look for the confirmation in the answer to a write.

        Raises:
            ConfigurationError: it is not there, or says something else.
        """
        said = headers.get(_PREFIX) or ""
        if said != self.algorithm:
            raise ConfigurationError(
                f"the service at {url} does not confirm the encryption {self.algorithm!r}: it says {said or 'nothing'}",
                hint="use a service that encrypts as asked, or remove the encryption from storage_options",
                url=url,
            )


def read_s3_encryption(options: Mapping[str, Any], environ: Mapping[str, str]) -> S3Encryption | None:
    """The encryption that ``storage_options`` or the environment ask for; None: none, the bucket's default counts.

    Raises:
        ConfigurationError: a value that S3 does not know, or one that belongs to another algorithm.
    """
    nested = options.get(S3_KEYWORDS) or {}
    if not hasattr(nested, "items"):
        raise ConfigurationError(f"{S3_KEYWORDS} must be a table, not {type(nested).__name__}", hint=_HINT)
    asked: dict[str, Any] = {}
    for name, value in [*nested.items(), *((name, options[name]) for name in S3_NAMES if name in options)]:
        if name not in _NAMES:
            raise _unsupported(f"{S3_KEYWORDS} of s3", name)
        if value is None:
            continue
        if asked.setdefault(_NAMES[name], value) != value:
            raise ConfigurationError(f"storage_options says two different things with {name}", hint="say it once")
    if environ.get(_CUSTOMER_VARIABLE):
        raise _unsupported("the environment", _CUSTOMER_VARIABLE)
    for field, variable in _VARIABLES.items():
        if environ.get(variable):
            asked.setdefault(field, environ[variable])
    return _checked(asked) if asked else None


def _checked(asked: dict[str, Any]) -> S3Encryption:
    algorithm, key_id = asked.get("algorithm") or "", asked.get("kms_key_id") or ""
    bucket_key = _truth(asked.get("bucket_key", False))
    if algorithm == "sse-c":
        raise _unsupported("storage_options for s3", "sse-c")
    if not algorithm and (key_id or bucket_key or asked.get("context")):
        raise ConfigurationError("the options name a KMS key, but no encryption", hint="add ServerSideEncryption")
    if algorithm not in _ALGORITHMS:
        raise ConfigurationError(f"the encryption {algorithm!r} is not known", hint=f"known: {', '.join(_ALGORITHMS)}")
    context = _context(asked.get("context"))
    if algorithm == "AES256" and (key_id or bucket_key or context):
        raise ConfigurationError("AES256 takes no KMS key, context or bucket key", hint=f"use {_KMS}, or leave it out")
    if bucket_key and algorithm != _KMS:
        raise ConfigurationError(f"{algorithm} takes no bucket key", hint=f"use {_KMS}, or leave it out")
    if not isinstance(key_id, str) or not re.fullmatch(r"[\x21-\x7e]*", key_id):
        raise ConfigurationError("the KMS key's id is no id, alias or ARN", hint="take it from aws kms list-keys")
    return S3Encryption(algorithm=algorithm, kms_key_id=key_id, context=context, bucket_key=bucket_key)


def refuse_encryption(options: Mapping[str, Any], url: str, *, allowed: frozenset[str] = frozenset()) -> None:
    """Refuse options of encryption where nothing would follow them.

    Args:
        options: The storage options; tables in them are looked into, however deep.
        url: The remote, for the message.
        allowed: Names that the file system behind is known to follow.

    Raises:
        ConfigurationError: there is one.
    """
    for name, value in options.items():
        if name in allowed:
            continue
        if _SPEAKS_OF_ENCRYPTION.search(str(name)):
            raise _unsupported(url, str(name))
        if hasattr(value, "items"):
            refuse_encryption(value, url)


def check_gcs_key(name: Any, url: str) -> None:
    """Look at a ``kms_key_name``.

    Raises:
        ConfigurationError: it is no name of a key, or that of a version, which Google's client would drop.
    """
    if name is not None and not (isinstance(name, str) and _GCS_KEY.fullmatch(name)):
        raise ConfigurationError(
            f"the kms_key_name for {url} is no key's resource name",
            hint="write projects/PROJECT/locations/PLACE/keyRings/RING/cryptoKeys/KEY, without a version",
            url=url,
        )


def check_gcs_answer(asked: str | None, said: str | None, url: str) -> None:
    """Look for the key in what was written.

    Raises:
        ConfigurationError: another one is there, or none.
    """
    if asked and (said or "").partition("/cryptoKeyVersions/")[0] != asked:
        raise ConfigurationError(
            f"{url} was not encrypted with {asked}: the service says {said or 'nothing'}",
            hint="use a service that encrypts as asked, or remove kms_key_name from storage_options",
            url=url,
        )


def _unsupported(where: str, name: str) -> ConfigurationError:
    what = "keys that the customer keeps are not supported" if _CUSTOMER_KEY.search(name) else "it is not supported"
    return ConfigurationError(f"{where} has the option {name}: {what}; nothing was sent", hint=_HINT)


def _truth(value: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    found = value if isinstance(value, bool) else words.get(str(value).lower())
    if found is None:
        raise ConfigurationError("BucketKeyEnabled is neither true nor false", hint="write true or false")
    return found


def _context(value: Any) -> str:
    """The context as it goes over the line."""
    if not value:
        return ""
    try:
        pairs = value if isinstance(value, dict) else json.loads(base64.b64decode(value, validate=True))
    except (TypeError, ValueError, binascii.Error) as error:
        raise _no_context() from error
    if not isinstance(pairs, dict) or not all(isinstance(v, str) for pair in pairs.items() for v in pair):
        raise _no_context()
    return value if isinstance(value, str) else base64.b64encode(json.dumps(pairs).encode()).decode()


def _no_context() -> ConfigurationError:
    return ConfigurationError(
        "SSEKMSEncryptionContext is no table of texts, nor base64 of one as JSON", hint='write {"project": "x"}'
    )
