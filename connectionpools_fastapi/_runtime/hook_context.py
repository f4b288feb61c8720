"""The context in which the pool's own tasks call hooks: without the variables of any request."""

from contextvars import Context

# Copied for each task. Only `otel` sets a variable in it, so that hooks begin no traces.
HOOK_CONTEXT = Context()
