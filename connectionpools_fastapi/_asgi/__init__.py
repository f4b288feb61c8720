"""What FastAPI and Starlette see."""

from .._acceleration import compiled_path

__path__[:0] = compiled_path(__name__)
