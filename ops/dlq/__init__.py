"""Dead letters: read without loss, explained, replayed, exported, discarded, put back. One engine, CLI and API."""
