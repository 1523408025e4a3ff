"""The release audit: pages and totals, the chain of seals over the rows, exports, and the entrypoints."""
