"""Studies of imaging planes for pretraining: from DICOM, from NIfTI, or cut out of volumes."""
