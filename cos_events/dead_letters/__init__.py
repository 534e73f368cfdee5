"""What no retry can deliver: kept on `<subscription>.dlq`, and `dead` in the ledger.

The ledger is what counts: everything here works even when the broker has lost its dead-letter
queues. Only messages that are not envelopes exist on the broker alone.
"""

from cos_events.dead_letters.burying import bury, bury_unusable

__all__ = ["bury", "bury_unusable"]
