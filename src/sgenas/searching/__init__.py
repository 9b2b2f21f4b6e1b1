"""The search: `sgenas.search`, its loop, callbacks, schedules and configuration.

The folder is not called ``search`` because that is the name of the function.
"""
