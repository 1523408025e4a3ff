"""`ecom dlq`: what operators do with dead messages."""
