"""The machine learning: networks, preprocessing, training, bundles. Knows no bus and no database."""
