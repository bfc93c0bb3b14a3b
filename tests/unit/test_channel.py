"""Lines of JSON between processes: whole lines only, bounded, and nonsense is the peer's error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmserver import channel
from kvmserver.channel import ChannelError


def test_messages_arrive_whole_and_in_order() -> None:
    ours, theirs = channel.pair()
    for number in range(3):
        assert ours.send({"number": number, "text": "ü\n"})
    ours.close()
    assert [message["number"] for message in theirs.messages()] == [0, 1, 2]
    assert theirs.receive() is None
    theirs.close()


def test_half_a_line_waits_for_its_rest() -> None:
    ours, theirs = channel.pair()
    line = channel.encode({"a": 1})
    ours._end.sendall(line[:3])
    assert theirs.receive() == []
    ours._end.sendall(line[3:] + line)
    assert theirs.receive() == [{"a": 1}, {"a": 1}]
    ours.close()
    theirs.close()


def test_a_gone_peer_is_told_by_the_result() -> None:
    ours, theirs = channel.pair()
    theirs.close()
    assert not ours.send({"a": 1})
    assert ours.receive() is None
    ours.close()


@pytest.mark.parametrize("line", [b"hello", b"[1]", b"3", b"", b"\xff", b"[" * 100_000])
def test_nonsense_is_a_channel_error(line: bytes) -> None:
    with pytest.raises(ChannelError):
        channel.decode(line)


def test_a_line_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "LINE_BYTES_MAX", 100)
    ours, theirs = channel.pair()
    ours._end.sendall(b"x" * 101)
    with pytest.raises(ChannelError, match="more than 100 bytes"):
        theirs.receive()
    ours.close()
    theirs.close()


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_a_message_reads_back(message: channel.Message) -> None:
    line = channel.encode(message)
    assert line.count(b"\n") == 1
    assert channel.decode(line) == message
