"""The durable join of predictions with their labels, in any order, weeks apart, and the closing of batches."""
