"""The demonstration: a classifier decays and recovers on DICOM studies pushed over the network."""
