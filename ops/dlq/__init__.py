"""The engine behind `ecom dlq` and the API: reads dead messages without loss, replays, exports, discards, imports."""
