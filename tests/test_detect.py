"""Detection: which position is asked for which box, losses, suppression, figures."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.data.prediction import Detections, pasted_mask
from plusx.grammar.heads import COCO_ANCHORS, Fcos
from plusx.metrics.detection import DetectionMeter
from plusx.tasks import fcos, yolo
from plusx.tasks.detect import Detect
from plusx.tasks.suppression import Suppression


STRIDES = ((8, 8), (16, 16), (32, 32))
SIZES = ((8, 10), (4, 5), (2, 3))


@st.composite
def scenes(draw: st.DrawFn, count: int = 2, most: int = 4) -> Tensor:
    """Targets (n, m, 6) in an image of 64 x 80: boxes, a crowd here and there, rows of none."""
    number = st.integers(0, 640)
    rows = []
    for _ in range(count):
        objects = []
        for _ in range(draw(st.integers(1, most))):
            x, y = sorted((draw(number), draw(number))), sorted((draw(number), draw(number)))
            # off the grid, so that no position lies on an edge
            box = [x[0] / 8 + 0.03, y[0] / 10 + 0.03, x[1] / 8 + 1.06, y[1] / 10 + 1.06]
            objects.append([*box, draw(st.integers(-1, 2)), draw(st.sampled_from([0, 0, 0, 1]))])
        rows.append(objects + [[0, 0, 0, 0, -1, 0]] * (most - len(objects)))
    return torch.tensor(rows, dtype=torch.float32)


def fits(x: float, y: float, stride: int, row: list[float], coarser: bool = False) -> bool:
    """Section 3 of the paper, of one position and one box; or that it fits but for being larger."""
    left, top, right, bottom = row[:4]
    farthest = max(x - left, y - top, right - x, bottom - y)
    low, high = {8: (0, 64), 16: (64, 128), 32: (128, math.inf)}[stride]
    middle = abs(x - (left + right) / 2) < 1.5 * stride
    middle = middle and abs(y - (top + bottom) / 2) < 1.5 * stride
    inside = left < x < right and top < y < bottom
    return inside and middle and low <= farthest and (coarser or farthest < high)


def finer_strides(places: list[tuple[float, float, int]], rows: Tensor) -> dict[int, int]:
    """Boxes that no position fits, and the stride of the level that is asked for them instead."""
    strides = {}
    for number, row in enumerate(rows.tolist()):
        if not any(fits(*position, row) for position in places):
            steps = [position[2] for position in places if fits(*position, row, coarser=True)]
            strides[number] = max(steps, default=0)
    return strides


def assigned_by_hand(
    x: float, y: float, stride: int, rows: Tensor, finer: dict[int, int]
) -> tuple[int, bool]:
    """What one position is asked for, one box after the other."""
    best, smallest, in_crowd = -1, math.inf, False
    for number, (left, top, right, bottom, category, crowd) in enumerate(rows.tolist()):
        inside = left < x < right and top < y < bottom
        if category < 0 or not inside:
            continue
        if crowd:
            in_crowd = True
            continue
        row = [left, top, right, bottom]
        assigned = fits(x, y, stride, row)
        assigned |= finer.get(number) == stride and fits(x, y, stride, row, coarser=True)
        area = (right - left) * (bottom - top)
        if assigned and area < smallest:
            best, smallest = number, area
    return best, best >= 0 or not in_crowd


@pytest.mark.slow
@settings(max_examples=25)
@given(scenes())
def test_positions_are_assigned_to_boxes_as_in_the_paper(boxes: Tensor) -> None:
    middles, steps = fcos.positions(SIZES, STRIDES, torch.device("cpu"))
    rows, weighted = fcos.assign(boxes, middles, steps)
    places = [(x, y, int(step)) for (x, y), step in zip(middles.tolist(), steps.tolist())]
    for image, objects in enumerate(boxes):
        finer = finer_strides(places, objects)
        for index, (x, y, step) in enumerate(places):
            expected, assigned = assigned_by_hand(x, y, step, objects, finer)
            near = rows[image, index]
            if expected >= 0 and near >= 0:  # of two of one size either may be meant
                area = (objects[:, 2] - objects[:, 0]) * (objects[:, 3] - objects[:, 1])
                assert float(area[near]) == pytest.approx(float(area[expected]))
            else:
                assert int(near) == expected
            assert bool(weighted[image, index]) is assigned


@pytest.mark.parametrize(
    ("strides", "corners", "level"),
    [
        ((8,), (3, 3, 637, 477), 8),  # there is no coarser level
        ((8, 16), (3, 3, 637, 477), 16),
        ((8, 16), (100, 100, 112, 112), 8),
        ((8, 16, 32), (3, 100, 633, 115), 32),
        ((8, 16, 32), (3, 100, 633, 110), 16),  # between the rows of stride 32
        ((8, 16, 32), (3, 105, 633, 111), 8),  # and between those of stride 16
    ],
)
def test_every_box_larger_than_the_finest_stride_has_a_position(
    strides: tuple[int, ...], corners: tuple[int, ...], level: int
) -> None:
    sizes = [(480 // stride, 640 // stride) for stride in strides]
    pairs = [(stride, stride) for stride in strides]
    middles, steps = fcos.positions(sizes, pairs, torch.device("cpu"))
    rows, _ = fcos.assign(torch.tensor([[[*corners, 0, 0.0]]]), middles, steps)
    assert set(steps[rows[0] >= 0].tolist()) == {level}


def predicted(sizes: Sequence[tuple[int, int]], channels: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator) for size in sizes]


BOXES = torch.tensor(
    [
        [[4, 6, 30, 40, 1, 0], [18, 18, 29, 30, 0, 0], [0, 0, 79, 63, 2, 0]],
        [[40, 10, 70, 60, 2, 0], [0, 30, 30, 60, 1, 1], [0, 0, 0, 0, -1, 0]],
    ],
    dtype=torch.float32,
)


def test_correct_outputs_have_almost_no_loss_and_decode_to_the_boxes() -> None:
    """Levels that tell exactly what is asked: their loss is small, their boxes are the targets."""
    boxes = BOXES[:, :2].clone()
    boxes[1, 1, 4] = -1
    middles, steps = fcos.positions(SIZES, STRIDES, torch.device("cpu"))
    rows, _ = fcos.assign(boxes, middles, steps)
    flat = torch.zeros(2, len(middles), 3 + 5)
    flat[..., :3] = -12
    flat[..., 3:7] = 1
    for image, position in (rows >= 0).nonzero().tolist():
        left, top, right, bottom, category, *_ = boxes[image, rows[image, position]].tolist()
        x, y = middles[position].tolist()
        sides = [x - left, y - top, right - x, bottom - y]
        flat[image, position, int(category)] = 12
        flat[image, position, 3:7] = torch.tensor(sides)
        low = (min(sides[0], sides[2]) / max(sides[0], sides[2])) * (
            min(sides[1], sides[3]) / max(sides[1], sides[3])
        )
        flat[image, position, 7] = torch.logit(torch.tensor(low**0.5), eps=1e-6)
    maps, start = [], 0
    for height, width in SIZES:
        part = flat[:, start : start + height * width]
        maps.append(part.transpose(1, 2).reshape(2, 8, height, width))
        start += height * width
    _, losses = fcos.loss(maps, STRIDES, boxes)
    assert float(losses["classes"]) < 1e-3
    assert float(losses["boxes"]) < 1e-5
    candidates, sure = fcos.candidates(maps, STRIDES)
    for image, objects in enumerate(boxes):
        annotated = objects[objects[:, 4] >= 0]
        kept = suppressed(candidates[image], sure[image], 100, 0.05, 0.6)
        assert len(kept) == len(annotated)
        by_class = kept[kept[:, 5].argsort()]
        assert torch.allclose(by_class[:, :4], annotated[annotated[:, 4].argsort(), :4], atol=1e-3)


@pytest.mark.parametrize("kind", ["fcos", "yolo"])
def test_losses_of_the_parts_of_a_batch_add_up(kind: str) -> None:
    def loss(maps: list[Tensor], boxes: Tensor) -> Tensor:
        if kind == "fcos":
            return fcos.loss(maps, STRIDES, boxes)[0]
        return yolo.loss(maps, STRIDES, COCO_ANCHORS, boxes, (64, 80))[0]

    maps = predicted(SIZES, 8 if kind == "fcos" else 24)
    if kind == "fcos":
        maps = [torch.cat([m[:, :3], m[:, 3:7].abs() * 20, m[:, 7:]], 1) for m in maps]
    apart = [loss([m[i : i + 1] for m in maps], BOXES[i : i + 1]) for i in range(2)]
    assert float(loss(maps, BOXES)) == pytest.approx(float(sum(apart)) / 2, rel=1e-5)


def test_positions_in_a_crowd_are_ignored() -> None:
    """An answer in a crowd costs nothing; the same answer elsewhere does."""
    maps = [torch.zeros(2, 8, *size) for size in SIZES]
    for level in maps:
        level[:, :3] = -8
        level[:, 3:7] = 10
    before, _ = fcos.loss(maps, STRIDES, BOXES)
    maps[0][1, 0, 5, 1] = 6.0  # x = 12, y = 44: in the crowd of the second image
    inside, _ = fcos.loss(maps, STRIDES, BOXES)
    maps[0][1, 0, 1, 8] = 6.0  # x = 68, y = 12: elsewhere
    outside, _ = fcos.loss(maps, STRIDES, BOXES)
    assert float(inside) == pytest.approx(float(before), abs=1e-6)
    assert float(outside) > float(before) + 0.1


def test_a_box_is_assigned_to_the_anchor_of_the_most_similar_shape() -> None:
    """Worked out by hand: 30 x 61 in the cell of the middle, and decoded again."""
    boxes = torch.tensor([[[20.0, 1.0, 50.0, 62.0, 1.0, 0.0]]])
    image, row, slot = yolo.assign(boxes, SIZES, STRIDES, COCO_ANCHORS)
    cells, sides, steps = yolo.slots(SIZES, STRIDES, COCO_ANCHORS, torch.device("cpu"))
    assert (image.tolist(), row.tolist()) == ([0], [0])
    assert sides[slot].tolist() == [[30.0, 61.0]]
    assert cells[slot].tolist() == [[2.0, 1.0]]  # 35 / 16 and 31.5 / 16
    maps = [torch.zeros(1, 24, *size) for size in SIZES]
    rows = yolo.flat(maps)
    rows[0, slot[0], :4] = torch.tensor(
        [math.log(0.1875 / 0.8125), math.log(0.96875 / 0.03125), 0, 0]
    )
    decoded = yolo.decoded(rows, cells, sides, steps)[0, slot[0]]
    assert torch.allclose(decoded, boxes[0, 0, :4], atol=1e-3)


def test_the_rows_of_a_yolo_level_are_in_the_order_of_its_slots() -> None:
    maps = predicted(SIZES, 24)
    rows = yolo.flat(maps)
    cells, sides, _ = yolo.slots(SIZES, STRIDES, COCO_ANCHORS, torch.device("cpu"))
    row = 3 * 8 * 10 + 2 * 4 * 5 + 3 * 5 + 4  # second level, third anchor, row 3, column 4
    assert torch.equal(rows[1, row], maps[1][1, 16:24, 3, 4])
    assert cells[row].tolist() == [4.0, 3.0]
    assert sides[row].tolist() == [59.0, 119.0]


def suppressed_by_hand(boxes: Tensor, scores: Tensor, least: float, overlap: float) -> list[int]:
    """Greedy, one class: positions that stay, the surest first."""
    order = [i for i in scores.argsort(descending=True).tolist() if scores[i] > least]
    indices: list[int] = []
    for i in order:
        left, top, right, bottom = boxes[i].tolist()
        for j in indices:
            a, b, c, d = boxes[j].tolist()
            shared = max(0.0, min(right, c) - max(left, a)) * max(0.0, min(bottom, d) - max(top, b))
            both = (right - left) * (bottom - top) + (c - a) * (d - b) - shared
            if shared / both > overlap:
                break
        else:
            indices.append(i)
    return indices


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.integers(1, 12))
def test_nms_keeps_the_box_of_the_highest_score(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + 5 + 10 * torch.rand(count, 2, generator=generator)], 1)
    scores = torch.rand(count, 2, generator=generator)
    rows = suppressed(boxes, scores, 100)
    for category in range(2):
        of_class = rows[rows[:, 5] == category]
        indices = suppressed_by_hand(boxes, scores[:, category], 0.3, 0.4)
        assert torch.equal(of_class[:, :4], boxes[indices])
        assert torch.equal(of_class[:, 4], scores[indices, category])
    assert bool((rows[:-1, 4] >= rows[1:, 4]).all())
    assert torch.equal(suppressed(boxes, scores, 2), rows[:2])


def suppressed(
    boxes: Tensor, scores: Tensor, most: int, threshold: float = 0.3, iou: float = 0.4
) -> Tensor:
    suppression = Suppression(threshold, iou, most)
    (image,) = suppression.detections(boxes[None], scores[None], (80, 80))
    return torch.cat([image["boxes"], image["scores"][:, None], image["labels"][:, None]], 1)


def detections(rows: Tensor, grids: Tensor | None = None) -> Detections:
    """Rows (n, d, 6) of left, top, right, bottom, score and class as a prediction."""
    return Detections(rows[..., :4], rows[..., 4], rows[..., 5].long(), grids)


def targets(boxes: Tensor, scale: float = 1.0, masks: Tensor | None = None) -> Batch:
    """A batch with these boxes in inputs of 64 x 64."""
    n = len(boxes)
    sizes = torch.tensor([[64, 64]]).repeat(n, 1)
    stored = (sizes / scale).long()
    extras = {"scale": torch.full((n,), scale), "content_size": sizes, "stored_size": stored}
    if masks is not None:
        extras["masks"] = masks
    return Batch(torch.zeros(n, 1, 64, 64), boxes, extras=extras)


def on_plane(box: Tensor, grid: Tensor, size: tuple[int, int]) -> Tensor:
    plane = torch.zeros(size, dtype=torch.uint8)
    top, left, inside = pasted_mask(box, grid, size)
    plane[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return plane


def average_precision_by_hand(hits: list[bool], count: int) -> float:
    """The mean over recalls 0, 0.01 .. 1 of the highest precision from there on."""
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    recall = right / count
    return float(
        np.mean([max([*precision[recall >= r - 1e-12], 0.0]) for r in np.linspace(0, 1, 101)])
    )


def test_average_precision_equals_a_calculation_by_hand() -> None:
    """One class, five boxes in two images; the answers hit, hit twice, miss and come too near."""
    square = torch.tensor([0.0, 0.0, 10.0, 10.0])
    places = torch.tensor([[0, 0], [30, 0], [60, 0]]).float().repeat(1, 2)
    right = torch.full((2, 3, 6), -1.0)
    right[..., :4] = square + places
    right[..., 4:] = torch.tensor([0.0, 0.0])
    right[1, 2, 4] = -1
    answers = [
        (0, square, 0.9, True),
        (0, square, 0.8, False),  # a second time
        (0, square + places[1] + 1, 0.7, True),  # 81 of 119 shared: hit at 0.5 alone
        (1, square + places[1], 0.6, True),
        (1, square + 12, 0.5, False),
    ]
    told_rows = torch.zeros(2, 4, 6)
    told_rows[..., 5] = -1
    filled = [0, 0]
    for image, box, score, _ in answers:
        told_rows[image, filled[image]] = torch.tensor([*box.tolist(), score, 0.0])
        filled[image] += 1
    meter = DetectionMeter(["cell", "other"])
    meter.update(detections(told_rows), targets(right))
    figures = meter.compute()
    loose = average_precision_by_hand([hit for *_, hit in answers], 5)
    strict = average_precision_by_hand([True, False, False, True, False], 5)
    assert (figures["count"], figures["boxes"]) == (2, 5)
    assert figures["map50"] == pytest.approx(loose, abs=1e-9)
    assert figures["map75"] == pytest.approx(strict, abs=1e-9)
    assert figures["map"] == pytest.approx((4 * loose + 6 * strict) / 10, abs=1e-9)
    assert figures["per_class"][0] == {
        "label": "cell", "map50": figures["map50"], "map": figures["map"], "boxes": 5,
    }  # fmt: skip
    assert figures["per_class"][1] == {"label": "other", "map50": None, "map": None, "boxes": 0}
    assert (figures["map_medium"], figures["map_large"]) == (None, None)


def test_object_sizes_are_those_of_the_stored_image() -> None:
    """A box of 20 x 20 in an input half as large is one of 40 x 40: a medium one."""
    right = torch.tensor([[[0.0, 0.0, 20.0, 20.0, 0.0, 0.0]]])
    meter = DetectionMeter(["cell"])
    batch = targets(right, scale=0.5)
    meter.update(detections(torch.tensor([[[0.0, 0.0, 20.0, 20.0, 0.9, 0.0]]])), batch)
    figures = meter.compute()
    assert (figures["map_small"], figures["map_medium"]) == (None, pytest.approx(1.0))


def test_detections_of_crowds_are_ignored() -> None:
    right = torch.tensor([[[0.0, 0, 10, 10, 0, 0], [20, 20, 60, 60, 0, 1]]])
    told_rows = torch.tensor([[[30.0, 30, 40, 40, 0.9, 0], [0, 0, 10, 10, 0.5, 0]]])
    meter = DetectionMeter(["cell"])
    meter.update(detections(told_rows), targets(right))
    figures = meter.compute()
    assert (figures["boxes"], figures["map50"]) == (1, pytest.approx(1.0))


def test_no_detection_has_an_average_precision_of_zero() -> None:
    right = torch.tensor([[[0.0, 0, 10, 10, 0, 0]]])
    meter = DetectionMeter(["cell"])
    meter.update(detections(torch.zeros(1, 0, 6)), targets(right))
    assert meter.compute()["map50"] == 0.0


def test_masks_are_evaluated_by_their_iou() -> None:
    """The boxes are right; one mask is, the other is the lower half of what it should be."""
    masks = torch.zeros(1, 2, 64, 64, dtype=torch.uint8)
    masks[0, 0, :28, :28] = 1
    masks[0, 1, 30:58, 30:58] = 1
    right = torch.tensor([[[0.0, 0, 28, 28, 0, 0], [30, 30, 58, 58, 1, 0]]])
    grids = torch.ones(1, 2, 28, 28)
    grids[0, 1, :18] = 0
    rows = torch.cat([right[..., :4], torch.tensor([[[0.9, 0], [0.8, 1]]])], -1)
    # torchvision pastes up to and with the pixel at the right and the bottom edge
    pasted = on_plane(rows[0, 0, :4], grids[0, 0], (64, 64))
    assert int((pasted != masks[0, 0]).sum()) <= 29**2 - 28**2
    meter = DetectionMeter(["whole", "half"])
    meter.update(detections(rows, grids), targets(right, masks=masks))
    figures = meter.compute()
    assert figures["map"] == pytest.approx(1.0)
    whole, half = figures["per_class"]
    assert whole["mask_map50"] == pytest.approx(1.0)
    assert half["mask_map50"] == 0.0
    assert figures["mask_map50"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "box",
    [(3.2, 4.7, 20.1, 9.9), (-6, -3, 9, 50), (0, 0, 40, 30), (35, 20, 60, 44), (7.5, 7, 7.9, 8)],
)
def test_masks_are_pasted_as_torchvision_pastes_them(box: tuple[float, ...]) -> None:
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    grid = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    whole = paste_masks_in_image(grid, torch.tensor([box]), (30, 40))[0, 0] >= 0.5
    assert torch.equal(on_plane(torch.tensor(box).float(), grid[0, 0], (30, 40)) > 0, whole)


class FixedOutput(nn.Module):
    """In the place of a network: tells the same of every image."""

    level_strides = STRIDES
    num_classes = 3
    head_spec = Fcos()

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ParameterList(torch.zeros(1, 8, *size) for size in SIZES)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [each.expand(len(x), -1, -1, -1) for each in self.maps]


def test_a_detector_refuses_invalid_targets() -> None:
    task = Detect(FixedOutput())
    inputs = torch.zeros(2, 3, 64, 80)
    with pytest.raises(ValueError, match=r"a box is of class 7.* allows 0 to 2"):
        task(Batch(inputs, torch.tensor([[[0.0, 0, 9, 9, 7, 0]]] * 2)))
    with pytest.raises(ValueError, match="a detector needs boxes"):
        task(Batch(inputs, torch.tensor([0, 1])))
    with pytest.raises(ValueError, match=r"needs a \[head\] of a detector, not a linear layer"):
        Detect(nn.Linear(3, 3))
    assert task.metrics == ("map50", "map")
    with torch.no_grad():
        assert int(task.predict(Batch(inputs)).labels.max()) >= 0


def test_without_the_extra_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plusx.metrics.detection.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'plusx\[detect\]'"):
        Detect(FixedOutput()).meters()
