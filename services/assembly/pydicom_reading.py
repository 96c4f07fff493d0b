"""pydicom's readers, told to say nothing about values: its warnings quote them, and they may be identities."""

from pydicom import config
from pydicom.filereader import read_dataset, read_file_meta_info, read_sequence

config.settings.reading_validation_mode = config.IGNORE

__all__ = ["read_dataset", "read_file_meta_info", "read_sequence"]
