"""The enmeshment loss in other libraries' training loops; each module needs its namesake.

Nothing is imported here, so that no library but the one in use must be installed.
"""
