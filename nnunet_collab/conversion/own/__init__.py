"""Convert a user's own folders of images and labels, DICOM among them, to a raw dataset without personal data."""
