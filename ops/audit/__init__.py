"""The release audit, as operators see it: its chain verified, its heads witnessed, its exports proved."""
