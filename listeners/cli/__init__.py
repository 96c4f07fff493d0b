"""The command line: everything a person does with the service."""
