"""Results back to the PACS: each champion's prediction as a DICOM SR (TID 1500) and a Secondary Capture image."""
