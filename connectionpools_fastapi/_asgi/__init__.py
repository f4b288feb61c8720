"""What FastAPI and Starlette see."""
