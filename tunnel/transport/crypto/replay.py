"""The anti-replay window: which sequence numbers were seen, without ever shifting a bitmap.

Source: RFC 6479: a ring of blocks with one block more than the window, so that moving on only clears whole blocks.
A run of consecutive numbers costs one step per block it touches, not one per packet.
"""

from __future__ import annotations

from typing import Final

WINDOW: Final = 65_536  # sequence numbers behind the highest one seen that are still told apart
_BLOCK_SHIFT: Final = 8
_BLOCK: Final = 1 << _BLOCK_SHIFT  # bits of one block: four of the largest runs
_BLOCKS: Final = WINDOW // _BLOCK + 1
LIMIT: Final = 2**64  # sequence numbers are below


class ReplayWindow:
    """Accepts every number once, as long as it is less than WINDOW behind the highest one accepted.

    Ask only after the packet authenticated: a forged number must not move the window.
    """

    __slots__ = ("_blocks", "highest")

    def __init__(self) -> None:
        self._blocks = [0] * _BLOCKS
        self.highest = -1  # the highest number marked; -1 while there is none

    def check(self, number: int) -> bool:
        """Would `number` be accepted?  Changes nothing."""
        highest = self.highest
        if number > highest:
            return number < LIMIT
        if number <= highest - WINDOW or number < 0:
            return False
        return not (self._blocks[(number >> _BLOCK_SHIFT) % _BLOCKS] >> (number & (_BLOCK - 1))) & 1

    def mark(self, number: int) -> None:
        """Remember `number`, for which check() was true."""
        if number > self.highest:
            self._advance(number)
        self._blocks[(number >> _BLOCK_SHIFT) % _BLOCKS] |= 1 << (number & (_BLOCK - 1))

    def accept(self, number: int) -> bool:
        """check() and mark() in one."""
        if not self.check(number):
            return False
        self.mark(number)
        return True

    def accept_run(self, first: int, count: int) -> int:
        """Accept first, first+1, ... first+count-1; bit i of the result says that first+i was new.

        All new is `(1 << count) - 1`.  O(blocks touched): one or two for a run of 64, in order or not.
        """
        if count <= 0 or first < 0:
            return 0
        last = min(first + count, LIMIT) - 1
        is_ahead = self.highest < first <= last
        if last > self.highest:
            self._advance(last)
        blocks = self._blocks
        if is_ahead and (offset := first & (_BLOCK - 1)) + last - first < _BLOCK:  # as nearly always: all are new, in one block
            wanted = (2 << (last - first)) - 1
            blocks[(first >> _BLOCK_SHIFT) % _BLOCKS] |= wanted << offset
            return wanted
        number = max(first, self.highest - WINDOW + 1)  # older ones are refused
        accepted = 0
        while number <= last:
            offset = number & (_BLOCK - 1)
            length = min(last - number + 1, _BLOCK - offset)
            wanted = ((1 << length) - 1) << offset
            index = (number >> _BLOCK_SHIFT) % _BLOCKS
            seen = blocks[index]
            new = wanted & ~seen
            if new:
                blocks[index] = seen | new
                accepted |= (new >> offset) << (number - first)
            number += length
        return accepted

    def _advance(self, highest: int) -> None:
        """Move the window up to `highest` and clear the blocks it enters."""
        block, target = self.highest >> _BLOCK_SHIFT, highest >> _BLOCK_SHIFT
        self.highest = highest
        if target == block:
            return
        if target - block >= _BLOCKS:
            self._blocks = [0] * _BLOCKS
            return
        blocks = self._blocks
        while block < target:
            block += 1
            blocks[block % _BLOCKS] = 0
