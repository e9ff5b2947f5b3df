"""Duplicates in a data set: equal files, and copies of one image.

Copies that were encoded again, resized or mirrored have nearly the same thumbnail. Thumbnails are
compared by their correlation c: for normalised ones, the squared distance is 2 - 2 c. Only their
lowest frequencies are compared first, which excludes most pairs and no copy. Sorting by the
direction of these frequencies in which images differ most avoids most comparisons.

Small images of one kind, such as the trousers of Fashion-MNIST, have nearly the same thumbnail.
Small images are therefore compared whole, and those with many similar ones need a higher
correlation.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from plusx.data.image_file import THUMBNAIL, UnreadableInput, read_regular


CORRELATION = 0.985  # of thumbnails from which images count as copies
_RADIUS = float(np.sqrt(2 - 2 * CORRELATION))  # the distance of two such thumbnails
_MIN_DEVIATION = 3.0  # grey levels; flatter thumbnails are not comparable
_FREQUENCIES = 8  # of a thumbnail, in each direction, that are compared first
_BLOCK = 1024  # images that are compared with the others at a time
_COMPARED = 2**25  # pairs of them at a time, which is 128 MiB
_VERIFIED = 100_000  # pairs that are compared as a whole at a time
_ROUNDING = 1e-4  # of squared distances in float32
_SMALL = 64  # pixels on the longer side of images that are compared whole
_FEW = 3  # small images with more similar ones need the correlation _CLOSE
_CLOSE = 0.995
_COMPARED_WHOLE = 4096  # pairs of small images at a time
MAX_PAIRS = 1_000_000
MAX_IMAGES = 200_000  # that are compared, in quadratic time

Thumbnails = UInt8[np.ndarray, "n t t"]
Pairs = Int64[np.ndarray, "m 2"]


def decoded_thumbnails(texts: Sequence[str]) -> Thumbnails:
    """Decode the thumbnails of verdicts; black if there is none."""
    blank = bytes(THUMBNAIL * THUMBNAIL)
    data = b"".join(base64.b64decode(text) if text else blank for text in texts)
    return np.frombuffer(data, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL)


def same_files(paths: Sequence[str], digests: Sequence[str]) -> list[list[int]]:
    """Return the groups of files with the same bytes.

    `digests` are those of image_file.content_digest, which omit the middle of large files; files
    with equal digests are compared byte by byte. Inputs that are not files have the path "" and are
    compared by their digests alone.
    """
    groups: dict[str, list[int]] = {}
    for index, digest in enumerate(digests):
        if digest:
            groups.setdefault(digest, []).append(index)
    same: list[list[int]] = []
    for group in groups.values():
        whole: dict[bytes, list[int]] = {}
        for index in group if len(group) > 1 else ():
            if not paths[index]:
                whole.setdefault(b"", []).append(index)
                continue
            try:
                content = hashlib.sha256(read_regular(paths[index])).digest()
            except (UnreadableInput, OSError):
                continue
            whole.setdefault(content, []).append(index)
        same += [indices for indices in whole.values() if len(indices) > 1]
    return same


def copies(thumbnails: Thumbnails) -> tuple[Pairs, Bool[np.ndarray, "m"]] | None:
    """Return the pairs of images that are copies, and whether they are mirrored.

    None if there are more than MAX_PAIRS, so that the images hardly differ.
    """
    from scipy.fft import dctn

    count = len(thumbnails)
    distinct, numbers = np.unique(thumbnails.reshape(count, -1), axis=0, return_inverse=True)
    numbers = numbers.ravel()
    usable = np.flatnonzero(distinct.std(1) >= _MIN_DEVIATION)
    if not len(usable):
        return np.empty((0, 2), np.int64), np.empty(0, np.bool_)
    whole = _normalised(distinct[usable].reshape(-1, THUMBNAIL, THUMBNAIL))
    low = dctn(whole, axes=(1, 2), norm="ortho")[:, :_FREQUENCIES, :_FREQUENCIES]
    # in the order of a direction that mirror images have in common, near ones are not far apart
    keys = _widest(low[:, :, ::2].reshape(len(low), -1))
    order = np.argsort(keys, kind="stable")
    usable, whole, low, keys = usable[order], whole[order], low[order], keys[order]
    # odd frequencies along a row change their sign in the mirror
    signs = np.where(np.arange(_FREQUENCIES) % 2, -1, 1).astype(np.float32)
    near = {
        is_mirrored: _near(keys, low, low * signs if is_mirrored else low, whole, mirror)
        for is_mirrored, mirror in ((False, whole), (True, whole[:, :, ::-1]))
    }
    members: dict[int, list[int]] = {}
    for index, number in enumerate(numbers.tolist()):
        members.setdefault(number, []).append(index)
    pairs: dict[tuple[int, int], bool] = {}
    same = ((number, number) for number in usable.tolist() if len(members[number]) > 1)
    upright = [*same, *(usable[pair].tolist() for pair in near[False])]
    mirrored = [usable[pair].tolist() for pair in near[True]]
    for is_mirrored, listed in ((False, upright), (True, mirrored)):
        for one, other in listed:
            for pair in product(members[one], members[other]):
                if pair[0] != pair[1]:
                    pairs.setdefault((min(pair), max(pair)), is_mirrored)
                if len(pairs) > MAX_PAIRS:
                    return None
    ordered = sorted(pairs)
    result = np.array(ordered, np.int64).reshape(-1, 2)
    return result, np.array([pairs[pair] for pair in ordered], np.bool_)


def copies_of_small_images(
    pairs: Pairs,
    mirrored: Bool[np.ndarray, "m"],
    sizes: Sequence[tuple[int, int]],
    grey: Callable[[int, tuple[int, int]], UInt8[np.ndarray, "h w"]],
) -> Int64[np.ndarray, "_ 2"]:
    """Return the pairs that are copies when small images are compared whole, and all other pairs.

    sizes: width and height of each image; 0 if unknown
    grey: reads the image of an index in grey, scaled to a width and a height
    """
    partners = np.bincount(pairs.ravel(), minlength=len(sizes))
    is_copy = np.ones(len(pairs), np.bool_)
    groups: dict[tuple[int, int], list[int]] = {}
    for number, pair in enumerate(pairs.tolist()):
        size = min((sizes[index] for index in pair), key=lambda size: size[0] * size[1])
        if 0 < max(size) <= _SMALL:
            groups.setdefault(size, []).append(number)
    for size, numbers in groups.items():
        cached: dict[int, np.ndarray] = {}
        for start in range(0, len(numbers), _COMPARED_WHOLE):
            chosen = np.array(numbers[start : start + _COMPARED_WHOLE])
            for index in np.unique(pairs[chosen]).tolist():
                if index not in cached:
                    cached[index] = grey(index, size)
            one, other = (np.stack([cached[i] for i in pairs[chosen, at]]) for at in (0, 1))
            other[mirrored[chosen]] = other[mirrored[chosen]][:, :, ::-1]
            correlation = (_normalised(one) * _normalised(other)).sum((1, 2))
            has_many = partners[pairs[chosen]].max(1) > _FEW
            is_copy[chosen] = correlation >= np.where(has_many, _CLOSE, CORRELATION)
    return pairs[is_copy]


def _widest(values: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n"]:
    """Return the coordinate of each row in the direction in which they differ most."""
    centred = values - values.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return (values @ directions[:, -1]).astype(np.float32)


def _near(
    keys: Float32[np.ndarray, "n"],
    low: Float32[np.ndarray, "n f f"],
    other_low: Float32[np.ndarray, "n f f"],
    whole: Float32[np.ndarray, "n t t"],
    other_whole: Float32[np.ndarray, "n t t"],
) -> Pairs:
    """Return the pairs (i, j), i < j, of images where i is a copy of j.

    keys: coordinates of the images in one direction, ascending
    """
    first, second = low.reshape(len(low), -1), other_low.reshape(len(low), -1)
    ones = np.ones((len(low), 1), np.float32)
    lengths, other_lengths = (np.square(rows).sum(1, keepdims=True) for rows in (first, second))
    # one product gives the negative squared distance: 2 a b - a a - b b
    first = np.concatenate([2 * first, -lengths, -ones], 1)
    second = np.concatenate([second, ones, other_lengths], 1)
    least = -(_RADIUS**2) - _ROUNDING
    near: list[Pairs] = [np.empty((0, 2), np.int64)]
    block = min(_BLOCK, max(1, _COMPARED // max(1, len(low))))
    for start in range(0, len(low), block):
        end = min(start + block, len(low))
        last = int(np.searchsorted(keys, keys[end - 1] + _RADIUS, "right"))
        close = first[start:end] @ second[start:last].T >= least
        candidates = np.argwhere(close) + start
        candidates = candidates[candidates[:, 0] < candidates[:, 1]]
        for part in np.array_split(candidates, len(candidates) // _VERIFIED + 1):
            one, other = whole[part[:, 0]], other_whole[part[:, 1]]
            correlation = np.einsum("nij,nij->n", one, other)
            near.append(part[correlation >= CORRELATION])
    return np.concatenate(near)


def _normalised(thumbnails: UInt8[np.ndarray, "n h w"]) -> Float32[np.ndarray, "n h w"]:
    """Normalise grey images to mean 0 and length 1."""
    values = thumbnails.astype(np.float32)
    values -= values.mean((1, 2), keepdims=True)
    values /= np.sqrt(np.square(values).sum((1, 2), keepdims=True)).clip(1e-12)
    return values
