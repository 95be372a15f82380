from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifactsync.errors import DamagedError, NewerFormatError
from artifactsync.journal.record import FORMAT, Kind, Record, decode_metrics, encode_metrics, seal

GOLDEN = Path(__file__).with_name("golden_commit.json")


def commit(**changes: object) -> Record:
    fields: dict[str, object] = {
        "seq": 7,
        "attempt": 2,
        "kind": Kind.COMMIT,
        "write_id": "0123456789abcdef0123456789abcdef",
        "writer": {"host": "trainer-7", "pid": 4242},
        "prev_sha256": "ab" * 32,
        "previous_commit": 5,
        "totals": {"checkpoints": 3, "bytes": 300, "latest": 7, "last_step": 300},
        "time": "2026-11-21T12:00:00.000+00:00",
        "body": {
            "name": "ep3-ba300",
            "step": 300,
            "epoch": 3,
            "batch": 300,
            "metrics": {"loss": 0.25, "worst": "nan"},
            "files": [
                {
                    "path": "checkpoints/ep3-ba300-rank0.pt",
                    "key": "checkpoints/ep3-ba300-rank0.a2.pt",
                    "size": 100,
                    "sha256": "cd" * 32,
                }
            ],
        },
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_format_is_frozen_by_a_golden_file() -> None:
    assert commit().encode() == GOLDEN.read_bytes()
    assert Record.decode(GOLDEN.read_bytes(), url="x") == commit()


@given(
    seq=st.integers(1, 2**62),
    attempt=st.integers(1, 10**6),
    kind=st.sampled_from(Kind),
    body=st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8) | st.booleans(), max_size=4),
)
def test_a_record_survives_its_bytes(seq: int, attempt: int, kind: Kind, body: dict[str, object]) -> None:
    record = commit(seq=seq, attempt=attempt, kind=kind, body=body)
    assert Record.decode(record.encode(), url="x") == record


def test_a_newer_format_is_a_clear_error() -> None:
    fields = {**json.loads(commit().encode()), "format": FORMAT + 1, "kind": "transmogrify"}
    with pytest.raises(NewerFormatError, match=f"format {FORMAT + 1}") as caught:
        Record.decode(seal(fields), url="s3://b/r/1.json")
    assert "upgrade" in caught.value.hint
    assert caught.value.exit_code == 2


def test_fields_of_a_later_version_are_ignored() -> None:
    fields = {**json.loads(commit().encode()), "colour": "blue"}
    assert Record.decode(seal(fields), url="x") == commit()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"format": 1}',
        b'{"format": true}',
        seal({**json.loads(commit().encode()), "seq": "7"}),
        seal({**json.loads(commit().encode()), "seq": True}),
        seal({**json.loads(commit().encode()), "kind": "dance"}),
        seal({**json.loads(commit().encode()), "body": []}),
        seal({**json.loads(commit().encode()), "previous_commit": "5"}),
        commit().encode()[:-20],
    ],
)
def test_what_is_no_record_is_damaged(data: bytes) -> None:
    with pytest.raises(DamagedError) as caught:
        Record.decode(data, url="s3://user:secret@b/r/1.json")
    assert caught.value.url == "s3://***@b/r/1.json"


def test_metrics_that_json_cannot_say_come_back() -> None:
    metrics = {"a": float("inf"), "b": float("-inf"), "c": 1.5}
    encoded = encode_metrics({**metrics, "d": float("nan")})
    json.dumps(encoded, allow_nan=False)
    decoded = decode_metrics(encoded)
    assert {name: decoded[name] for name in metrics} == metrics
    assert decoded["d"] != decoded["d"]


def test_a_record_shows_every_flipped_bit_by_itself() -> None:
    data = commit(body={**commit().body, "name": '"self_sha256": "' + "0" * 64 + '"'}).encode()
    assert Record.decode(data, url="x")
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((DamagedError, NewerFormatError)):
            Record.decode(bytes(flipped), url="x")
