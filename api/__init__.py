"""The HTTP service: publish, history, health, status.

Installed as the package `supervisor_api`, so that a project's own `api` never clashes with it; hence
all imports in here are relative. It reaches the pool only through the control socket, and Redis only
through `supervisor.broker`.
"""
