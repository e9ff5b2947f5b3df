"""Reading one volume, a NIfTI file or a folder with one DICOM series; writing masks as NIfTI.

Refused, with the reason: more than MAX_VOXELS voxels; values that are not finite; volumes without
an affine (no sform and no qform, or no position, orientation or pixel spacing); series with missing
or repeated slices, or slices that differ in the meaning of their values; several series in one
folder; colours; multi-frame files.
"""

import gzip
import logging
import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Num, UInt8

from plusx.data.image_file import UnreadableInput
from plusx.data.modality.space import affine_problem
from plusx.errors import MissingLibrary


MAX_VOXELS = 2**30  # of one volume
NIFTI = (".nii", ".nii.gz")
_UNITS = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's x and y have the opposite direction
_PHOTOMETRIC = "PhotometricInterpretation"  # MONOCHROME1 shows the lowest value white
# tags that must agree within a series, or its values would differ in meaning
_COMMON_TAGS = (
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "Modality",
    _PHOTOMETRIC,
    "BitsStored",
    "PixelRepresentation",
)
_WITH_UNIT = ("CT", "PT", "NM")  # modalities whose values are measurements
_FIRST_TAGS = (b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0", b"\x08\0\x16\0", b"\x02\0\0\0")
_TOLERANCE = 0.02  # relative difference up to which slice distances count as equal


class _Reading(threading.local):
    """The file that a thread is reading."""

    name = ""


_reading = _Reading()


class Placement(NamedTuple):
    """The sform and qform of a NIfTI file, their codes, and the unit."""

    sform: Num[np.ndarray, "4 4"]
    qform: Num[np.ndarray, "4 4"]
    codes: tuple[int, int]
    unit: str


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume as stored: values (channel, x, y, z), and an affine to the world in mm."""

    values: Num[np.ndarray, "c x y z"]
    affine: Num[np.ndarray, "4 4"]
    placement: Placement


def is_scan(path: str | Path) -> bool:
    """Whether a path has the name of a NIfTI file, or is a folder with a DICOM file."""
    name = os.fspath(path)
    if os.path.isdir(name):
        return any(_is_dicom(entry.path) for entry in _files(name))
    return name.lower().endswith(NIFTI)


def stem_of(path: str | Path) -> str:
    """Return a volume's name without the extension."""
    name = os.path.basename(os.path.normpath(os.fspath(path)))
    for end in (".nii.gz", ".nii"):
        if name.lower().endswith(end):
            return name[: -len(end)]
    return name


def files_of(path: str | Path) -> list[str]:
    """Return the files from which a volume is read."""
    name = os.fspath(path)
    return [entry.path for entry in _files(name)] if os.path.isdir(name) else [name]


def read_scan(path: str | Path) -> Scan:
    """Read a volume. Raises UnreadableInput with the reason, or OSError.

    Raises RuntimeError if the extra for its format is not installed.
    """
    name = os.fspath(path)
    scan = _read_series(name) if os.path.isdir(name) else _read_nifti(name)
    problem = affine_problem(scan.affine)
    if problem is not None:
        raise UnreadableInput(problem)
    if scan.values.dtype.kind == "f":
        count = int(scan.values.size - np.isfinite(scan.values).sum())
        if count:
            raise UnreadableInput(f"{count:,} of its voxels are not finite")
    return scan


def as_nifti(mask: UInt8[np.ndarray, "x y z"], placement: Placement) -> bytes:
    """Return a mask as a compressed NIfTI file in the space of a volume.

    The same mask gives the same bytes.
    """
    import nibabel

    image = nibabel.Nifti1Image(mask, None)
    image.set_sform(placement.sform, placement.codes[0])
    if np.isfinite(placement.qform).all():  # it may be invalid if there is a sform
        image.set_qform(placement.qform, placement.codes[1])
    image.header.set_xyzt_units(placement.unit)
    return gzip.compress(image.to_bytes(), mtime=0)


def _read_nifti(name: str) -> Scan:
    try:
        import nibabel
    except ImportError:
        raise MissingLibrary("NIfTI files need nibabel", "medical") from None
    if not os.path.isfile(name):
        os.stat(name)  # raises FileNotFoundError
        raise UnreadableInput("not a regular file")
    _name_files_in_log()
    _reading.name = os.path.basename(name)
    try:
        if name.lower().endswith(".gz"):
            _check_gzip(name)  # nibabel does not read up to the checksum
        image = nibabel.load(name)
        if not isinstance(image, nibabel.Nifti1Image):  # the base of NIfTI-2 too
            raise UnreadableInput("not a NIfTI file")
        shape = tuple(int(side) for side in image.shape)
        if min(shape, default=0) < 1 or np.prod(shape, dtype=np.float64) > MAX_VOXELS:
            raise UnreadableInput(
                f"its shape is {_times(shape)}; at most {MAX_VOXELS:,} voxels are read"
            )
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) not in (3, 4):
            raise UnreadableInput(f"its shape is {_times(shape)}: a volume has three dimensions")
        header = image.header
        codes = int(header["sform_code"]), int(header["qform_code"])
        if codes == (0, 0):
            raise UnreadableInput(
                "it has no affine: neither its sform nor its qform is set, so that the size and "
                "direction of its voxels are unknown"
            )
        with image.file_map["image"].get_prepare_fileobj() as file:
            _refuse_header(type(header).from_fileobj(file, check=False))  # nibabel resets its copy
        unit = str(header.get_xyzt_units()[0])
        placement = Placement(
            np.asarray(image.get_sform()), np.asarray(image.get_qform()), codes, unit
        )
        stored = image.get_data_dtype()
        if stored.kind not in "iufb" or stored.itemsize > 8:
            raise UnreadableInput(f"its values are {stored}, not one number per voxel")
        values = np.asarray(image.dataobj)
    except (UnreadableInput, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # nibabel raises errors of any kind for corrupt files
        raise UnreadableInput(f"corrupt, or not a NIfTI file: {error}") from None
    values = values.reshape((*shape, 1) if len(shape) == 3 else shape)
    affine = np.array(image.affine, np.float64)
    affine[:3] *= _UNITS.get(unit, 1.0)
    return Scan(np.moveaxis(values, 3, 0), affine, placement)


def _refuse_header(header: Any) -> None:
    """Raise UnreadableInput if the voxel size or the scaling of values is not finite.

    A slope of 0 or NaN means that values are not scaled.
    """
    sides = [float(side) for side in header["pixdim"][1:4]]
    if not np.isfinite(sides).all():
        raise UnreadableInput(f"its voxels (pixdim) have {_times(sides)} mm, not finite numbers")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isinf(slope) or (slope and np.isfinite(slope) and not np.isfinite(intercept)):
        raise UnreadableInput(
            f"its values are scaled by scl_slope {slope} and scl_inter {intercept}, which are not "
            "finite"
        )


def _check_gzip(name: str) -> None:
    """Decompress a file to its end. Raises BadGzipFile, EOFError or zlib.error if it is corrupt."""
    with gzip.open(name) as file:
        while file.read(1 << 20):
            pass


@cache
def _name_files_in_log() -> None:
    """Make nibabel's warnings name the file that they are about."""
    logging.getLogger("nibabel.global").addFilter(_with_file_name)


def _with_file_name(record: logging.LogRecord) -> bool:
    record.msg, record.args = f"{_reading.name}: {record.getMessage()}", ()
    return True


def _read_series(folder: str) -> Scan:
    try:
        import pydicom
    except ImportError:
        raise MissingLibrary("DICOM files need pydicom", "medical") from None
    slices: list[tuple[str, Any]] = []
    for entry in _files(folder):
        if not _is_dicom(entry.path):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # force: files without the preamble are slices too; others lack tags and are refused
                header = pydicom.dcmread(entry.path, force=True)
            if "TransferSyntaxUID" not in header.file_meta:
                implicit = pydicom.uid.ImplicitVRLittleEndian
                explicit = pydicom.uid.ExplicitVRLittleEndian
                header.file_meta.TransferSyntaxUID = (
                    implicit if header.original_encoding[0] else explicit
                )
            slices.append((entry.name, header))
        except Exception as error:
            raise UnreadableInput(f"{entry.name} cannot be read: {error}") from None
    if not slices:
        raise UnreadableInput("the folder has no DICOM file")
    try:
        affine, slices = _in_order(slices)
        _refuse_differences(slices)
        sizes = {(int(header.Rows), int(header.Columns)) for _, header in slices}
    except UnreadableInput:
        raise
    except Exception as error:  # corrupt headers lead to errors of any kind
        raise UnreadableInput(f"headers of its slices cannot be used: {error}") from None
    if len(sizes) > 1:  # before any of them is decoded
        one, other = sorted(sizes)[:2]
        raise UnreadableInput(f"its slices have {_times(one)} and {_times(other)} pixels")
    ((rows, columns),) = sizes
    if rows * columns * len(slices) > MAX_VOXELS:
        raise UnreadableInput(f"more than {MAX_VOXELS:,} voxels")
    values = np.empty((columns, rows, len(slices)), np.float32)
    for index, (name, header) in enumerate(slices):
        try:
            values[:, :, index] = _plane(name, header, (rows, columns)).T
        except UnreadableInput:
            raise
        except (TypeError, ValueError, OverflowError) as error:  # from corrupt headers
            raise UnreadableInput(f"{name} has a header that cannot be used: {error}") from None
    return Scan(values[None], affine, Placement(affine, affine, (1, 1), "mm"))


def _refuse_differences(slices: list[tuple[str, Any]]) -> None:
    """Raise UnreadableInput if slices of a series differ in the meaning of their values."""
    for name, header in slices:
        slope, shift = _rescaling(header)
        if not np.isfinite([slope, shift]).all() or slope == 0:
            raise UnreadableInput(
                f"{name} has RescaleSlope {slope:g} and RescaleIntercept {shift:g}: they must be "
                "finite, and the slope not 0"
            )
    for key in _COMMON_TAGS:
        by_value: dict[object, list[str]] = {}
        for name, header in slices:
            value = getattr(header, key, None)
            # rescaling may differ, as in PET, if all slices have it
            is_rescaling = key in ("RescaleIntercept", "RescaleSlope")
            by_value.setdefault(value is not None if is_rescaling else value, []).append(name)
        if len(by_value) > 1:
            odd = min(by_value.values(), key=len)
            count = f" and {len(odd) - 1:,} more slices" if len(odd) > 1 else ""
            verb = "differ" if count else "differs"
            raise UnreadableInput(
                f"{odd[0]}{count} {verb} from the other slices in {key}, so their values are not "
                "comparable"
            )


def _rescaling(header: Any) -> tuple[float, float]:
    """Return the rescale slope and intercept of a slice; 1 and 0 by default."""
    slope, shift = (getattr(header, key, None) for key in ("RescaleSlope", "RescaleIntercept"))
    return float(1 if slope in (None, "") else slope), float(0 if shift in (None, "") else shift)


def _in_order(slices: list[tuple[str, Any]]) -> tuple[np.ndarray, list[tuple[str, Any]]]:
    """Return the affine of a series, and its slices in order."""
    series = {str(getattr(header, "SeriesInstanceUID", "")): name for name, header in slices}
    if len(series) > 1:
        one, other = sorted(series.values())[:2]
        raise UnreadableInput(
            f"{len(series)} series are in one folder, for example of {one} and {other}"
        )
    for name, header in slices:
        for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            if getattr(header, key, None) is None:
                several = int(getattr(header, "NumberOfFrames", 1) or 1) > 1
                reason = (
                    "several frames in one file, which is not supported" if several else f"no {key}"
                )
                raise UnreadableInput(f"{name} has no affine: it has {reason}")
    first = slices[0][1]
    cosines = np.array(first.ImageOrientationPatient, np.float64).reshape(2, 3)
    for name, header in slices:
        others = np.array(header.ImageOrientationPatient, np.float64).reshape(2, 3)
        if np.abs(others - cosines).max() > 1e-3 or header.PixelSpacing != first.PixelSpacing:
            raise UnreadableInput(f"{name} differs from the others in orientation or pixel spacing")
    normal = np.cross(cosines[0], cosines[1])
    positions = [np.array(header.ImagePositionPatient, np.float64) for _, header in slices]
    along = np.array([position @ normal for position in positions])
    order = np.argsort(along, kind="stable")
    ordered = [slices[index] for index in order]
    if len(slices) == 1:
        step = normal * float(getattr(first, "SliceThickness", None) or 1.0)
    else:
        _refuse_gaps(along[order], [name for name, _ in ordered])
        step = (positions[order[-1]] - positions[order[0]]) / (len(slices) - 1)
    between_rows, between_columns = (float(value) for value in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = cosines[0] * between_columns
    affine[:3, 1] = cosines[1] * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = positions[order[0]]
    return _LPS @ affine, ordered


def _refuse_gaps(along: np.ndarray, names: list[str]) -> None:
    """Raise UnreadableInput if slices are not equally spaced."""
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    for gap, name, next_name in zip(gaps.tolist(), names, names[1:]):
        pair = f"{name} and {next_name}"
        if gap < 1e-4:
            raise UnreadableInput(f"two slices have the same position: {pair}")
        if abs(gap - usual) > _TOLERANCE * usual:
            raise UnreadableInput(
                f"{pair} are {gap:.3g} mm apart, the other slices {usual:.3g} mm: a slice is "
                "missing or superfluous"
            )


def _plane(name: str, header: Any, size: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """Return the values of one slice in their unit, such as Hounsfield units for CT."""
    if int(getattr(header, "SamplesPerPixel", 1)) != 1:
        raise UnreadableInput(f"{name} is in colours")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = np.asarray(header.pixel_array)
    except Exception as error:
        raise UnreadableInput(f"{name} has no readable pixels: {error}") from None
    if stored.shape != size:
        raise UnreadableInput(f"{name} has {_times(stored.shape)} pixels, the first {_times(size)}")
    slope, shift = _rescaling(header)
    values = stored.astype(np.float32) * np.float32(slope) + np.float32(shift)
    inverted = getattr(header, _PHOTOMETRIC, None) == "MONOCHROME1"
    if not inverted or getattr(header, "Modality", None) in _WITH_UNIT:
        return values
    # the lowest value is white: inverted, so that larger is brighter, as in other series
    signed = int(getattr(header, "PixelRepresentation", 0))
    ends = -1.0 if signed else 2.0 ** int(header.BitsStored) - 1
    return np.float32(slope * ends + 2 * shift) - values


def _files(folder: str) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        files = [e for e in entries if e.is_file() and not e.name.startswith(".")]
    return sorted(files, key=lambda entry: entry.name)


def _is_dicom(path: str) -> bool:
    """Whether a file is DICOM by its name or content: DICM at byte 128, or a first tag."""
    if os.path.basename(path) == "DICOMDIR":
        return False
    if path.lower().endswith((".dcm", ".ima")):
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or head.startswith(_FIRST_TAGS)


def _times(shape: Sequence[int | float]) -> str:
    return " x ".join(map(str, shape))
