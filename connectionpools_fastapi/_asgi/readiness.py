"""Readiness: an application that is about to end wants no more requests, and serves those that come."""

from collections.abc import Callable


class Readiness:
    """Whether an application wants requests, while it runs."""

    def __init__(self, tell: Callable[[], None]) -> None:
        """Begin with a yes; `tell` tells the other workers of the service that it is a no, from any thread."""
        self.is_unready = False
        self.tell = tell

    def begin(self) -> None:
        """Want requests: the application starts."""
        self.is_unready = False
        _RUNNING.add(self)

    def end(self) -> None:
        """Forget the application: it has ended."""
        _RUNNING.discard(self)


# Of each application that runs in this process.
_RUNNING: set[Readiness] = set()


def mark_unready() -> None:
    """Make /pool/health/ready fail, so that load balancers send no more requests; all else goes on.

    Call it some seconds before the application ends, as in a preStop hook of Kubernetes. It holds for the
    applications that run in this process, on Linux for the other workers of their service too, and until they
    start again. From any thread, and from a signal handler of the event loop.
    """
    for readiness in tuple(_RUNNING):
        readiness.is_unready = True
        readiness.tell()
