"""The rule planner: the same agents without a language model."""
