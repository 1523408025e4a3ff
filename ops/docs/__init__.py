"""Writes the documents that are made from the tables: the contracts of all events and the diagrams."""
