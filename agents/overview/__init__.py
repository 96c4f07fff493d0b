"""How everything stands: one reading of the database for the command line and for the chat."""
