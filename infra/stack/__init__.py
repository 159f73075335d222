"""The local supervisor: service definitions, processes, health and the command line.

Everything Giovang needs runs here as a private, unprivileged process on loopback; nothing of the
machine's own servers is used or changed.
"""
