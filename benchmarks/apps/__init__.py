"""Applications to be served, a driver a module: a server's memory holds what it needs."""
