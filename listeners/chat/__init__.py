"""Plain language in, the agents' answers out: one conversation core, thin front ends over it."""
