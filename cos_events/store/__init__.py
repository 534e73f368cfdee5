"""The bus's own tables, in schema `cos_events`, and the statements on them.

outbox: what must go out · subscription: who wants it · delivery: who has received it · retention:
what has been dropped.
"""
