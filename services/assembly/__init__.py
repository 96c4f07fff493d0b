"""Assembly: the archive's files, its index, and the decision that a study is complete."""
