"""The `ecom` command: one module for each group of commands."""
