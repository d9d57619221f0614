"""Where to write a label beside a point so that it covers no other point and no other label."""

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["Box", "place_labels"]

Box = tuple[float, float, float, float]
"""left, bottom, right, top."""


def _overlap(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, frame: Box) -> float:
    inside = _overlap(box, frame)
    return (box[2] - box[0]) * (box[3] - box[1]) - inside


def _candidates(x: float, y: float, width: float, height: float, gap: float) -> Iterator[Box]:
    for distance in (gap, 2 * gap, 3.2 * gap, 4.6 * gap):
        # Right, left, above and below first, then the corners, so that simple cases look simple.
        for angle in np.deg2rad([0, 180, 90, 270, 45, 135, 315, 225, 22, 158, 338, 202]):
            across, up = np.cos(angle), np.sin(angle)
            middle_x = x + across * (distance + width / 2)
            middle_y = y + up * (distance + height / 2)
            yield (middle_x - width / 2, middle_y - height / 2, middle_x + width / 2, middle_y + height / 2)


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    gap: float,
    obstacles: Sequence[Box] = (),
) -> list[Box]:
    """A box for each label, the first that covers nothing, or else the one that covers least.

    Args:
        points: x, y of what is labelled; earlier ones choose first.
        sizes: width and height of each label, in the same unit.
        frame: the labels should stay within it.
        gap: radius of a point's marker and a little more.
        obstacles: what else should stay visible.
    """
    taken: list[Box] = [*obstacles, *((x - gap, y - gap, x + gap, y + gap) for x, y in points)]
    boxes: list[Box] = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        best, least = (x, y, x + width, y + height), float("inf")
        for box in _candidates(x, y, width, height, gap):
            cost = sum(_overlap(box, obstacle) for obstacle in taken) + 10 * _outside(box, frame)
            if cost < least:
                best, least = box, cost
            if not cost:
                break
        boxes.append(best)
        taken.append(best)
    return boxes
