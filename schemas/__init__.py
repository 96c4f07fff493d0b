"""The contracts: vocabulary, events, orders, tables, settings. Pure data; imports nothing else of this project."""
