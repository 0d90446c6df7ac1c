"""The HTTP service: publish, history, dead letters, health, status, and the project's own routers.

It is installed as the package `supervisor_api`, so that it never clashes with a project's own `api`; all its imports of
itself are therefore relative. It reaches the pool only through the control socket.
"""
