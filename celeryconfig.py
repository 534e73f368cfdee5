"""Celery's settings for COS's workers; a reason beside each that is not Celery's default."""

from cos_events.settings import get_settings

broker_url = get_settings().broker_url

# What a subscriber did is in the database; nobody reads results.
task_ignore_result = True

# JSON only: a message may never run code by being read.
accept_content = ["json"]
task_serializer = "json"

# Flower shows tasks only if they, and those who send them, say so.
worker_send_task_events = True
task_send_sent_event = True

# Deliveries are small, and their batches are as large as what a worker may hold.
worker_prefetch_multiplier = 64

# Redeliver at the next start what a warm shutdown had to leave.
worker_soft_shutdown_timeout = 5.0
