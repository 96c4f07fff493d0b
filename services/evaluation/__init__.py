"""The statistics of batches: metrics with intervals, the detector of decline, a first diagnosis, two plain sentences."""
