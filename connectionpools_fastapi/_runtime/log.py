"""The one logger of this package."""

import logging

logger: logging.Logger = logging.getLogger("connectionpools_fastapi")
