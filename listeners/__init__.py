"""The outside world in: DICOM, labels, chat, the command line."""
