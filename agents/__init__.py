"""LlamaIndex agents, their typed tools, the guardrails and the rule planner."""
