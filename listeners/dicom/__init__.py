"""DICOM: Verification and Storage as SCP, C-STORE and C-ECHO as SCU, synthetic images for demonstrations."""
