"""Ground truth from outside: files and HTTP, checked one label at a time and handed on through the outbox."""
