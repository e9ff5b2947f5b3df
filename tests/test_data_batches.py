"""Batches in memory: order, augmentation, and pixels that depend on (seed, epoch, index) alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plusx.data.batch import Batch
from plusx.data.buffer_pool import BufferPool
from plusx.data.dataset import Dataset, MemoryItems, images_of
from plusx.data.loader import Loader, batches
from plusx.data.modality import ImageModality, modality_from_dict
from plusx.data.readers.open import open_data
from plusx.data.rng import CounterRNG, SampleRNG, permutation
from plusx.data.transforms.steps import random_window, random_windows
from plusx.errors import UserError


def colours(count: int = 40, size: tuple[int, int] = (12, 12), channels: int = 3) -> Dataset:
    """A set in memory of random pixels, whose labels count the samples."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)
    return Dataset(
        name="colours",
        split="train",
        classes=tuple(map(str, range(count))),
        labels=torch.arange(count),
        modality=ImageModality(
            size, channels, (0.5,) * channels, (0.25,) * channels, resize="stretch"
        ),
        items=MemoryItems(images),
    )


def by_label(loaded: list[Batch]) -> torch.Tensor:
    """All inputs, in the order of the labels."""
    targets = torch.cat([batch.targets for batch in loaded])
    return torch.cat([batch.inputs for batch in loaded])[targets.argsort()]


SENTENCE = "pad2 crop flip vflip cutout4 erase.5"


def test_digits_have_the_documented_split_for_any_seed() -> None:
    sizes = {"train": 1200, "validation": 300, "test": 297, "all": 1797}
    for split, size in sizes.items():
        first, second = (open_data("digits", split=split, seed=seed) for seed in (0, 7))
        assert len(first) == size
        assert first.fingerprint() == second.fingerprint()
        assert first.modality.size == (8, 8)
        shares = first.labels.bincount(minlength=10) / size
        assert ((shares - 0.1).abs() < 0.01).all()
    splits = [
        images_of(open_data("digits", split=split)) for split in ("train", "validation", "test")
    ]
    whole = images_of(open_data("digits", split="all"))
    as_rows = {tuple(image.flatten().tolist()) for images in splits for image in images}
    assert as_rows == {tuple(image.flatten().tolist()) for image in whole}


def test_no_validation_lets_every_training_sample_train() -> None:
    assert len(open_data("digits", validation=0)) == 1500
    with pytest.raises(
        ValueError, match=r"no validation split with .* \(its splits: train, test\)"
    ):
        open_data("digits", split="validation", validation=0)
    assert len(open_data("digits", split="validation", validation=0.1)) == 150


def test_training_is_shuffled_by_seed_and_epoch_and_evaluation_is_in_order() -> None:
    source = colours()
    orders = [
        torch.cat([batch.targets for batch in batches(source, seed=seed, epoch=epoch)]).tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(40)) for order in orders)
    evaluated = [batch.targets for batch in batches(source, split="validation", augment=SENTENCE)]
    assert torch.cat(evaluated).tolist() == list(range(40))


def test_evaluation_never_augments() -> None:
    source = colours()
    (batch,) = batches(source, split="test", augment=SENTENCE)
    assert torch.equal(batch.inputs, source.modality.normalise(images_of(source)))


@pytest.mark.parametrize("augment", [SENTENCE, f"trivialaugment {SENTENCE}"])
def test_pixels_do_not_depend_on_the_batch_or_on_where_an_epoch_resumes(augment: str) -> None:
    source = colours()
    whole = list(batches(source, augment=augment, batch_size=8, seed=3, epoch=2))
    assert torch.equal(
        by_label(whole), by_label(list(batches(source, augment=augment, seed=3, epoch=2)))
    )
    resumed = list(batches(source, augment=augment, batch_size=8, seed=3, epoch=2, start=3))
    assert len(resumed) == 2
    for old, new in zip(whole[3:], resumed):
        assert torch.equal(old.inputs, new.inputs)
        assert torch.equal(old.targets, new.targets)


@pytest.mark.slow
def test_workers_change_no_pixel_and_live_on_from_epoch_to_epoch() -> None:
    source = colours()
    augment = "pad2 crop flip randaugment jitter.4 cutout4"
    loaded = {}
    for workers in (0, 1, 2):
        with Loader(source, augment=augment, batch_size=7, workers=workers) as loader:
            loaded[workers] = [list(loader.epoch(epoch)) for epoch in (0, 1)]
            # a consumer that leaves an epoch early does not disturb the next one
            assert len(next(loader.epoch(2))) == 7
            repeated = list(loader.epoch(1))
        for batch, same in zip(loaded[workers][1], repeated):
            assert torch.equal(batch.inputs, same.inputs)
    for workers in (1, 2):
        for epoch in (0, 1):
            for batch, same in zip(loaded[0][epoch], loaded[workers][epoch]):
                assert torch.equal(batch.inputs, same.inputs)
                assert torch.equal(batch.targets, same.targets)


@pytest.mark.parametrize("workers", [0, 2])
def test_random_numbers_differ_between_samples_epochs_and_workers(workers: int) -> None:
    """Workers that share one random state are the classic mistake: all draws must differ."""
    same = images_of(colours(1)).expand(40, -1, -1, -1)
    source = replace(colours(), items=MemoryItems(same.contiguous()))
    images = set()
    with Loader(source, augment="jitter.4 rotate30", batch_size=5, workers=workers) as loader:
        for epoch in range(3):
            for batch in loader.epoch(epoch):
                images |= {image.numpy().tobytes() for image in batch.inputs}
    assert len(images) == 120


def test_the_global_random_generators_are_not_used() -> None:
    source = colours()
    torch.manual_seed(5)
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for workers in (0, 1):
        list(batches(source, augment="randaugment pad2 crop flip", workers=workers))
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])  # noqa: NPY002


def test_one_left_over_sample_is_dropped_in_training_only() -> None:
    source = colours(9)
    assert [len(batch) for batch in batches(source, batch_size=4)] == [4, 4]
    assert [len(batch) for batch in batches(source, batch_size=4, split="test")] == [4, 4, 1]
    assert [len(batch) for batch in batches(source, batch_size=4, drop_last=False)] == [4, 4, 1]
    assert [len(batch) for batch in batches(colours(1), batch_size=4)] == [1]
    assert [len(batch) for batch in batches(colours(11), batch_size=4)] == [4, 4, 3]
    assert [len(b) for b in batches(colours(11), batch_size=4, drop_last=True)] == [4, 4]
    for drop_last in (None, True, False):
        loader = Loader(source, batch_size=4, drop_last=drop_last)
        assert len(loader) == len(list(loader.epoch(0)))


@given(
    count=st.integers(4, 40),
    batch_size=st.integers(4, 17),
    world=st.integers(1, 4),
    split=st.sampled_from(["train", "test"]),
    drop_last=st.sampled_from([None, True, False]),
)
@settings(max_examples=20)
def test_the_parts_of_all_ranks_are_the_whole_batches(
    count: int, batch_size: int, world: int, split: str, drop_last: bool | None
) -> None:
    source = colours(count, size=(3, 2))

    def made(rank: int, world: int, start: int = 0) -> list[Batch]:
        loader = Loader(
            source,
            split=split,
            augment="pad1 crop flip",
            batch_size=batch_size,
            drop_last=drop_last,
            part=(rank, world),
        )
        loaded = list(loader.epoch(2, start))
        assert len(loaded) == max(0, len(loader) - start)
        return loaded

    whole = made(0, 1)
    ranks = [made(rank, world) for rank in range(world)]
    lengths = [len(share) for share in ranks]
    for index in range(max(lengths)):
        shares = [part[index] for part in ranks if index < len(part)]
        # no rank waits for another in training, nor ever has an empty batch
        assert len(shares) == world or split != "train"
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert min(map(len, shares)) > 0
        assert torch.equal(torch.cat([share.inputs for share in shares]), whole[index].inputs)
        assert torch.equal(torch.cat([share.targets for share in shares]), whole[index].targets)
    if split != "train" and drop_last is not True:
        assert sum(len(batch) for part in ranks for batch in part) == count
    assert all(
        torch.equal(made(0, world, 1)[i].inputs, b.inputs) for i, b in enumerate(ranks[0][1:])
    )
    # of what a lone process has, training leaves out no more than a last batch too small to share
    assert max(lengths) == len(whole) or (
        split == "train" and len(whole) - max(lengths) == 1 and len(whole[-1]) < 2 * world
    )


def test_a_last_batch_of_one_image_a_rank_is_left_out_in_training() -> None:
    lengths = {
        (split, drop_last): [
            len(Loader(colours(11), split=split, batch_size=8, drop_last=drop_last, part=(rank, 2)))
            for rank in (0, 1)
        ]
        for split in ("train", "test")
        for drop_last in (None, False)
    }
    # 8 and 3 images: the last are 2 and 1
    assert lengths == {
        ("train", None): [1, 1],
        ("train", False): [2, 2],
        ("test", None): [2, 2],
        ("test", False): [2, 2],
    }
    assert [len(Loader(colours(9), split="test", batch_size=8, part=(r, 2))) for r in (0, 1)] == [
        *(2, 1)
    ]
    assert len(Loader(colours(9), batch_size=8, drop_last=False, part=(0, 2))) == 1


def test_buffers_are_reused_only_when_unreferenced() -> None:
    spare = BufferPool(max_arrays=2)
    first = spare.take((4, 5))
    address = first.ctypes.data
    assert spare.take((4, 5)).ctypes.data != address
    tensor = torch.from_numpy(first)
    view = tensor[1:].reshape(-1)[3:]
    del first, tensor
    assert spare.take((20,)).ctypes.data != address  # a view of a tensor has it
    saved = (view * torch.ones(12, requires_grad=True)).sum()
    del view
    assert spare.take((20,)).ctypes.data != address  # a graph has saved it
    del saved
    reused = spare.take((2, 10))
    assert reused.ctypes.data == address
    for size in (1, 2, 3, 4):
        spare.take((size,))
    assert len(spare._arrays) == 2


def test_referenced_batches_do_not_change() -> None:
    source = colours(24, (180, 190))
    expected = list(batches(source, augment="flip", batch_size=8))
    with Loader(source, augment="flip", batch_size=8) as loader:
        for epoch in (0, 0):
            for index, batch in enumerate(loader.epoch(epoch)):
                assert torch.equal(batch.inputs, expected[index].inputs)
    assert len({batch.inputs.data_ptr() for batch in expected}) == 3


def test_a_loader_refuses_invalid_arguments() -> None:
    for part in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="part ="):
            Loader(colours(), part=part)
    with pytest.raises(ValueError, match="cannot share so few"):
        Loader(colours(), batch_size=3, part=(0, 4))
    with pytest.raises(ValueError, match="colours has 3 samples: too few for 4"):
        Loader(colours(3), part=(0, 4))
    with pytest.raises(ValueError, match="batch_size = 0"):
        batches(colours(), batch_size=0)
    with pytest.raises(ValueError, match="workers = -1"):
        batches(colours(), workers=-1)
    with pytest.raises(ValueError, match="split 'trian'"):
        batches(colours(), split="trian")


def test_unknown_data_suggests_similar_names() -> None:
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        open_data("digit")


def test_a_batch_splits_in_order_and_moves_to_channels_last() -> None:
    batch = Batch(torch.randn(10, 3, 4, 4), torch.arange(10))
    pieces = batch.split(4)
    assert [len(part) for part in pieces] == [3, 3, 2, 2]
    assert torch.equal(torch.cat([part.targets for part in pieces]), batch.targets)
    assert [len(part) for part in batch.split(99)] == [1] * 10
    moved = batch.to("cpu", channels_last=True)
    assert moved.inputs.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="at least 1 part"):
        batch.split(0)


def test_a_set_at_another_size_is_scaled() -> None:
    source = open_data("digits", split="test", size=32)
    assert images_of(source).shape == (297, 1, 32, 32)
    assert source.modality.size == (32, 32)


def test_preprocessing_round_trips_through_json_and_is_validated() -> None:
    modality = ImageModality((8, 9), 1, (0.5,), (0.25,))
    assert modality_from_dict(modality.to_dict()) == modality
    with pytest.raises(ValueError, match="std"):
        ImageModality((8, 8), 1, (0.5,), (0.0,))
    with pytest.raises(ValueError, match="2 numbers for 1 channels"):
        ImageModality((8, 8), 1, (0.5, 0.5), (1.0,))
    with pytest.raises(ValueError, match="sizes"):
        modality_from_dict({"sizes": 3})


def test_normalising_is_torchvisions_bit_for_bit() -> None:
    from torchvision.transforms import v2

    source = colours()
    peer = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.25,) * 3)]
    )
    assert torch.equal(source.modality.normalise(images_of(source)), peer(images_of(source)))
    for channels in (3, 1):  # so many that they are normalised in pieces, in both layouts
        large = colours(5, (333, 401), channels)
        whole = images_of(large)
        normalised = [
            large.modality.normalise(images)
            for images in (whole, whole.to(memory_format=torch.channels_last), whole[:, :, ::2, 1:])
        ]
        expected = v2.Normalize([0.5] * channels, [0.25] * channels)(whole.float() * (1.0 / 255))
        assert torch.equal(normalised[0], expected)
        assert torch.equal(normalised[1], expected)
        assert torch.equal(normalised[2], expected[:, :, ::2, 1:])
        assert normalised[1].is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=50)
@given(st.integers(0, 2**64), st.integers(0, 1000), st.integers(1, 300))
def test_random_numbers_are_a_function_of_their_counters(seed: int, epoch: int, count: int) -> None:
    draws = CounterRNG.of(seed, epoch, np.arange(count))
    alone = CounterRNG.of(seed, epoch, np.array([count - 1]))
    assert draws.uniform()[-1] == alone.uniform()[0]
    assert (draws.below(7) < 7).all()
    assert (draws.below(7) >= 0).all()
    assert sorted(permutation(count, seed, epoch)) == list(range(count))


@settings(max_examples=200)
@given(st.integers(0, 2**64), st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**41))
def test_one_sample_has_the_numbers_of_its_row(
    seed: int, epoch: int, sample: int, purpose: int
) -> None:
    view, draw = purpose % 3, epoch % 50
    rows = CounterRNG.of(seed, epoch, np.array([7, sample]), view).at(purpose)
    one = SampleRNG.of(seed, epoch, sample, view).at(purpose)
    assert one.bits(draw) == rows.bits(draw)[1]
    assert one.uniform(-2.0, 3.0, draw) == rows.uniform(-2.0, 3.0, draw)[1]
    assert one.below(sample + 1 & 0xFFFF, draw) == rows.below(sample + 1 & 0xFFFF, draw)[1]
    assert one.coin() == rows.coin()[1]
    assert one.alternating() == rows.alternating()[1]
    height, width = 1 + seed % 700, 1 + epoch % 700
    sides = np.array([[height] * 2, [width] * 2])
    assert random_window(one, height, width) == tuple(v[1] for v in random_windows(rows, *sides))


def test_random_numbers_are_uniform_and_uncorrelated() -> None:
    draws = CounterRNG.of(0, 0, np.arange(20000))
    columns = [draws.uniform(draw=draw) for draw in range(3)]
    columns += [draws.at(1).uniform(), CounterRNG.of(0, 1, np.arange(20000)).uniform()]
    columns += [CounterRNG.of(1, 0, np.arange(20000)).uniform(), [*columns[0][1:].tolist(), 0.5]]
    for column in columns:
        assert abs(np.mean(column) - 0.5) < 0.01
        assert abs(np.var(column) - 1 / 12) < 0.003
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.03
    counts = np.bincount(draws.below(9), minlength=9)
    assert counts.min() > 2050
    assert counts.max() < 2400


def test_more_workers_than_a_machine_can_have_are_refused() -> None:
    with pytest.raises(UserError, match="workers = 10000: from 0 to 256"):
        Loader("digits", workers=10_000)
