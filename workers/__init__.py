"""The deployment: COS's Celery application. Each subscription is one module of this package.

celery -A workers worker -Q cos_events.publish
celery -A workers worker -Q activity,graph_staging
"""

from celery import Celery

from cos_events import install

app = install(Celery("workers", include=["workers.activity", "workers.graph_staging"]))
app.config_from_object("celeryconfig")

__all__ = ["app"]
