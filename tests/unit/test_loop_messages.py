"""What identifies a message: its CloudEvents id, or its place on the bus when it has no valid one."""

from services.runtime.messages import Record


def record(offset: int, ce_id: str | None) -> Record:
    return Record("inference.prediction.v1", 2, offset, "", {} if ce_id is None else {"ce_id": ce_id}, b"")


def test_messages_without_a_valid_id_are_told_apart_by_their_place() -> None:
    for invalid in (None, "", "x" * 65, "\ufffd" * 100):
        assert [record(offset, invalid).event_id for offset in (7, 8)] == [
            "inference.prediction.v1/2/7",
            "inference.prediction.v1/2/8",
        ]


def test_a_valid_id_is_kept() -> None:
    assert record(7, "x" * 64).event_id == "x" * 64
