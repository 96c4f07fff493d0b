"""The consumers. A service never imports another service; they meet on the bus. `services.runtime` is the shared plumbing."""
