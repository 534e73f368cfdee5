"""The deployment: COS's Celery application. Each subscription is one module of this package.

celery -A workers worker -Q cos_events.publish
celery -A workers worker -Q activity,graph_staging
"""

from importlib.util import find_spec

from celery import Celery

from cos_events import install

app = install(Celery("workers", include=["workers.activity", "workers.graph_staging"]))
# Installed, the settings are part of this package; in a checkout they stand beside it.
app.config_from_object(
    f"{__name__}.celeryconfig" if find_spec(f"{__name__}.celeryconfig") else "celeryconfig"
)

__all__ = ["app"]
