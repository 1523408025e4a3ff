"""One machine's stack: installs it, starts it, shows it, tests it, stops it. Not part of the production image."""
