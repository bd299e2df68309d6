"""gfal2, in processes of their own: its calls can hang, cannot be interrupted, and take secrets from the process.

`extension` finds the library, `worker` is what runs in such a process, `workers` starts, watches and ends them,
`speech` says what they are told of secrets.
"""
