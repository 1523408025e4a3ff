"""Everything over mutual TLS: a whole saga, certificates that are refused, and certificates that are renewed."""
