"""Small DICOM series and segmentations, written with pydicom and highdicom and not with our reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, SECONDARY = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
NAME = "Secretname^Anna"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def uid(*words: object) -> str:
    return generate_uid(entropy_srcs=[str(word) for word in words])


def slice_file(path: Path, pixels: np.ndarray, position: tuple[float, ...], **tags: object) -> Path:
    """One file. `tags`: any DICOM keyword; `series`, `study` and `patient` give the UIDs and the PatientID."""
    series, study, patient = (
        str(tags.pop(key, default)) for key, default in (("series", "s"), ("study", "t"), ("patient", "p"))
    )
    syntax = tags.pop("syntax", ExplicitVRLittleEndian)
    file = Dataset()
    file.SOPClassUID = tags.pop("SOPClassUID", CT)
    file.SOPInstanceUID = uid(series, path, "instance")
    file.StudyInstanceUID, file.SeriesInstanceUID = uid(study, patient), uid(series, patient, study)
    file.FrameOfReferenceUID = uid(study, patient, "frame")
    file.PatientName, file.PatientID, file.PatientBirthDate, file.PatientSex = (
        NAME,
        f"SECRETID{patient}",
        "19500102",
        "O",
    )
    file.StudyDate, file.StudyTime, file.AccessionNumber, file.StudyID = "20200304", "101112", "SECRETACC", "1"
    file.ReferringPhysicianName, file.InstitutionName = "Secretdoctor", "Secrethospital"
    file.Modality, file.SeriesNumber, file.InstanceNumber = "CT", 1, 1
    file.SeriesDescription, file.Manufacturer, file.ImageType = (
        f"SECRET {series}",
        "m",
        ["ORIGINAL", "PRIMARY", "AXIAL"],
    )
    file.Rows, file.Columns = pixels.shape[:2]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    file.PixelSpacing, file.SliceThickness = [0.75, 0.5], 2.0
    file.ImagePositionPatient, file.ImageOrientationPatient = list(position), list(AXIAL)
    file.RescaleIntercept, file.RescaleSlope = "-1024", "1"
    for keyword, value in tags.items():
        if value is None:
            del file[keyword]
        else:
            setattr(file, keyword, value)
    compressed = pydicom.uid.UID(syntax).is_compressed
    file.PixelData = encapsulate([pixels.tobytes()]) if compressed else pixels.tobytes()
    file["PixelData"].VR = "OB" if compressed else "OW"
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.file_meta.MediaStorageSOPClassUID, file.file_meta.MediaStorageSOPInstanceUID = (
        file.SOPClassUID,
        file.SOPInstanceUID,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, file, enforce_file_format=True, overwrite=True)
    return path


def voxels(seed: int, slices: int = 4) -> np.ndarray:
    """Stored values, `(Z, Y, X)`."""
    return np.random.default_rng(seed).integers(0, 2000, (slices, 6, 5)).astype(np.int16)


def write_series(folder: Path, stored: np.ndarray, distance: float = 2.0, **tags: object) -> list[Path]:
    """A series whose file names are not in the order of its slices; slice `i` is at z = 10 + `distance` * i."""
    count = len(stored)
    return [
        slice_file(
            folder / f"IM{(7 * i) % count if count % 7 else i:04d}.dcm",
            stored[i],
            (-3.0, 4.0, 10.0 + distance * i),
            **{"InstanceNumber": count - i, **tags},
        )
        for i in range(count)
    ]


def write_segmentation(path: Path, series: list[Path], labels: np.ndarray, names: dict[int, str]) -> Path:
    """A DICOM-SEG in which empty frames are left out. `labels`: `(Z, Y, X)` in the order of `series`."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in sorted(names.items())
    ]
    seg = hd.seg.Segmentation(
        source_images=[pydicom.dcmread(file) for file in series],
        pixel_array=labels.astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=uid(path, "seg"),
        series_number=9,
        sop_instance_uid=uid(path, "seg", "instance"),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="n",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return path
