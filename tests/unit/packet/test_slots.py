"""Views that are cut once stay right when shape or buffer change."""

from __future__ import annotations

from tunnel.proto.packet.header import HEADER_SIZE
from tunnel.proto.packet.slots import MAX_SHAPES, Cells, Cuts


def test_cells_are_header_and_sealed_part_of_each_whole_datagram() -> None:
    buffer = memoryview(bytes(range(250)))
    cells = Cells().of(buffer, 100, 4)
    assert [(bytes(header), bytes(sealed)) for header, sealed in cells] == [
        (bytes(buffer[at + 4 : at + 4 + HEADER_SIZE]), bytes(buffer[at + 4 + HEADER_SIZE : at + 100])) for at in (0, 100)
    ]


def test_cells_are_cut_anew_for_every_other_view_and_shape() -> None:
    whole = memoryview(bytearray(range(200)))
    views = [whole[at : at + 100] for at in range(MAX_SHAPES + 3)]
    cells = Cells()
    for _ in range(3):
        for at, view in enumerate(views):
            for stride in (50, 100):
                assert cells.of(view, stride, 0)[0][0][0] == at
                assert len(cells.of(view, stride, 0)) == 100 // stride
    assert cells.of(views[0], 50, 0) is cells.of(views[0], 50, 0)


def test_a_view_that_is_gone_is_not_taken_for_a_new_one_in_its_place() -> None:
    cells = Cells()
    for value in range(3 * MAX_SHAPES):
        assert cells.of(memoryview(bytes([value]) * 100), 100, 0)[0][0][0] == value


def test_cuts_follow_the_buffer_and_the_shape() -> None:
    packet = memoryview(bytearray(range(100)))
    cuts = Cuts()
    for _ in range(2):
        for step in range(20, 20 + MAX_SHAPES + 3):
            found = cuts.of(packet, 10, step, 6)
            assert [(place[0], len(place), plain[0]) for place, plain in found] == [
                (at - 6, 6, at - 6) for at in range(10, 100, step)
            ]
            assert len(found[0][1]) == 6 + step
            assert len(found[-1][1]) == min(6 + step, 100 - found[-1][0][0])
    other = memoryview(bytearray(100))
    assert cuts.of(other, 10, 20, 6)[0][1].obj is other.obj
