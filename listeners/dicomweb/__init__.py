"""DICOMweb receipt: STOW-RS (PS3.18 §10.5) with the guarantees of the C-STORE listener."""
