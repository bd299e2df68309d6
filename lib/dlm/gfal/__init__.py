"""gfal2, spoken in processes of their own: its calls can hang, cannot be interrupted, and take secrets from the process.

`extension` finds the library, `worker` is what runs in such a process, `workers` starts, watches and ends them.
"""
