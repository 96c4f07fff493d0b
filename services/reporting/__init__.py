"""Reports that people read: what happened to a model, how sure that is, what was done and what to do next."""
