"""Views that are cut once stay right when shape or buffer change."""

from __future__ import annotations

from tunnel.transport.packet.header import CALL_ROOM, HEADER_SIZE, MAX_SEGMENTS, TAG_SIZE
from tunnel.transport.packet.slots import MAX_BUFFERS, MAX_SHAPES, MAX_SIZES, Kept, PieceCutter, Plains, SlotCutter, cells


def test_slots_lie_where_a_datagram_has_its_parts() -> None:
    buffer = memoryview(bytearray(index % 251 for index in range(65_536)))
    cutter = SlotCutter()
    for size, prefix, head in ((100, 0, 15), (1_472, 8, 60), (100, 8, 15)):
        slots = cutter.of(buffer, size, prefix, head)
        assert len(slots.whole) == min(MAX_SEGMENTS, 65_507 // size)
        part = slots.part(1, 3)
        for index in (0, 1, 2):
            at, frame = (index + 1) * size, (index + 1) * size + prefix + HEADER_SIZE
            assert part.whole[index] == buffer[at : at + size]
            assert part.header[index] == buffer[at + prefix : frame]
            assert part.payload[index] == buffer[frame + head : at + size - TAG_SIZE]
            assert part.plain[index] == buffer[frame : at + size - TAG_SIZE]
            assert part.sealed[index] == buffer[frame : at + size]
        assert [len(column) for column in part] == [3] * 5
    other = memoryview(bytearray(3 * CALL_ROOM))
    assert cutter.of(other, 100, 8, 15).whole[0].obj is other.obj
    assert len(cutter.of(other, 1_472, 8, 15).whole) == 3 * 44


def test_cells_are_the_parts_of_each_whole_datagram() -> None:
    buffer = memoryview(bytes(range(250)))
    found = cells(buffer, 100, 4)
    for index, at in enumerate((0, 100)):
        assert found.prefix[index] == buffer[at : at + 4]
        assert found.header[index] == buffer[at + 4 : at + 4 + HEADER_SIZE]
        assert found.sealed[index] == buffer[at + 4 + HEADER_SIZE : at + 100]
    assert [len(column) for column in found] == [2] * 3


def test_cells_are_cut_anew_for_every_other_view_and_shape() -> None:
    whole = memoryview(bytearray(range(200)))
    views = [whole[at : at + 100] for at in range(MAX_BUFFERS + 3)]
    kept = Kept(cells)
    for _ in range(3):
        for at, view in enumerate(views):
            for stride in (50, 100):
                assert kept.of(view, stride, 0).header[0][0] == at
                assert len(kept.of(view, stride, 0).header) == 100 // stride
    assert kept.of(views[0], 50, 0) is kept.of(views[0], 50, 0)


def test_a_view_that_is_gone_is_not_taken_for_a_new_one_in_its_place() -> None:
    kept = Kept(cells)
    for value in range(3 * MAX_BUFFERS):
        assert kept.of(memoryview(bytes([value]) * 100), 100, 0).header[0][0] == value


def test_pieces_follow_the_buffer_and_the_shape() -> None:
    packet = memoryview(bytearray(range(100)))
    cutter = PieceCutter()
    for _ in range(2):
        for step in range(20, 20 + MAX_SHAPES + 3):
            found = cutter.of(packet, 10, step)
            assert [bytes(piece) for piece in found] == [bytes(packet[at : at + step]) for at in range(10, 100, step)]
    other = memoryview(bytearray(100))
    assert cutter.of(other, 10, 20)[0].obj is other.obj


def test_places_of_plaintexts_lie_one_behind_the_other() -> None:
    plains = Plains(65_536)
    plains.view[:] = bytes(index % 251 for index in range(len(plains.view)))
    for _ in range(2):
        for size in range(1_000, 1_000 + MAX_SIZES + 3):
            starts = range(0, len(plains.view) - size + 1, size)
            assert plains.wholes(size) == [plains.view[at : at + size] for at in starts]
            assert plains.fronts(size, 60) == [plains.view[at : at + 60] for at in starts]
            assert plains.bodies(size, 60) == [plains.view[at + 60 : at + size] for at in starts]
