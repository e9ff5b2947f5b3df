"""Small volumes as files of NIfTI and DICOM, in the orientation that is asked."""

from pathlib import Path

import numpy as np


def write_nifti(
    path: Path,
    values: np.ndarray,
    affine: np.ndarray | None = None,
    codes: tuple[int, int] = (1, 1),
) -> Path:
    """A NIfTI file of these values (x, y, z); an affine None is 1 mm a voxel."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    where = np.eye(4) if affine is None else affine
    image = nibabel.Nifti1Image(values, where)
    image.set_sform(where, codes[0])
    image.set_qform(where, codes[1])
    nibabel.save(image, path)
    return path


def write_series(
    folder: Path,
    values: np.ndarray,
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    series: str = "1.2.3",
    slope: float = 1.0,
    shift: float = -1024.0,
) -> Path:
    """An axial CT series of values (slice, row, column) in Hounsfield units; slices are written in
    another order than they lie in. spacing: of slices, rows and columns, in mm.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(values)):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series}.{number + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        name = folder / f"{(number * 7) % len(values):03}-{number}.dcm"
        dataset = FileDataset(str(name), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"{series}.{number + 1}"
        dataset.SeriesInstanceUID, dataset.Modality = series, "CT"
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [origin[0], origin[1], origin[2] + number * spacing[0]]
        dataset.PixelSpacing = [spacing[1], spacing[2]]
        dataset.Rows, dataset.Columns = values.shape[1:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = 0
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, shift
        stored = np.rint((values[number] - shift) / slope).astype(np.uint16)
        dataset.PixelData = stored.tobytes()
        dataset.save_as(name)
    return folder
